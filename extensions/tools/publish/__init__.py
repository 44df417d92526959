"""`type: publish`, `run.py publish`: a run's LoRA with a model card to the Hugging Face
hub."""
