"""`type: generate`, `run.py generate`: pictures of a model with LoRAs, from text and references."""
