"""What several tools have in common: the model and images of it, curves, pages, the job
of a run."""
