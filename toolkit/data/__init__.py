"""From folders and shards to batches: `pixels`, `scan`, `streams` and `batches`, each
on those before it."""
