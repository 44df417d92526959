"""`type: grid`, `run.py grid`: LoRA files side by side on one page."""
