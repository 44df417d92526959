"""`type: lint`, `run.py lint`: what is wrong with a dataset, before it is trained
on."""
