"""What several tools have in common: the model and pictures of it, curves, pages, the job of a run."""
