"""`type: influence`, `run.py influence`: finds training images that spoil a LoRA."""
