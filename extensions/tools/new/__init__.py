"""`type: new`, `run.py new`: writes a job for this machine's GPU, checks it and shows
its plan."""
