"""`type: new`, `run.py new`: writes the job of a character for this machine's GPU,
checks it and shows its plan."""
