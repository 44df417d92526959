"""`type: doctor`, `run.py doctor`: what is wrong with a LoRA file, and what to do."""
