"""`type: prefer`, `run.py prefer`: images to vote on, several of each prompt."""
