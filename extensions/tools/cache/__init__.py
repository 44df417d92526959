"""`type: cache`: computes the latents and text embeddings of a job's datasets, and
nothing else."""
