"""`type: best`, `run.py best`: which of a run's saved LoRAs to use."""
