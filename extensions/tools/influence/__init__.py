"""`type: influence`, `run.py influence`: which training images spoil a LoRA."""
