"""Folders to batches. Scan, captions, buckets, order, plan import no torch; cache, encode, batches do."""
