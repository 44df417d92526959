"""`type: doctor`, `run.py doctor`: finds what is wrong with a LoRA file, and says what
to do."""
