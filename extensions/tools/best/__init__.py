"""`type: best`, `run.py best`: finds which of a run's saved LoRAs to use."""
