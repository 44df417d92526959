"""`type: generate`, `run.py generate`: images of a model with LoRAs, from text and
references."""
