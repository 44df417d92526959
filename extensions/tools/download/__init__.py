"""`type: download`, `run.py download`: brings a model of the hub before a job needs
it."""
