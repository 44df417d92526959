"""`type: diagrams`, `run.py diagrams`: draws the curves of a run from its folder."""
