"""`type: lint`, `run.py lint`: checks a dataset before a training uses it."""
