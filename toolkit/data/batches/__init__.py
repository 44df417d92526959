"""Samples become latents and embeddings in a cache, and these become the batches of an
epoch or of a stream."""
