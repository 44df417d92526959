"""`type: align`, `run.py align`: writes aligned copies of pairs whose images are
shifted against each other."""
