"""`type: generate`, `run.py generate`: generates images with a model and LoRAs, from
text and control images."""
