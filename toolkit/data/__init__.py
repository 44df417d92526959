"""From folders to batches. Scan, captions, buckets, epoch order and plan import no torch; caches and dataloader do."""
