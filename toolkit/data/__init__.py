"""From folders and shards to batches: `pixels`, `scan`, `streams` and `batches`. Each
uses the ones before it."""
