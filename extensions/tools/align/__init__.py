"""`type: align`, `run.py align`: aligned copies of pairs that do not lie on each
other."""
