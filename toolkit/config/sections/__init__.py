"""What a job can say: one file per section (`train`, `network`, `datasets[]`, ...), and `trainer.py`, which puts the
sections of a process together."""
