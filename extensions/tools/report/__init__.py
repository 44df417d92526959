"""`type: report`, `run.py report`: one HTML page of a run."""
