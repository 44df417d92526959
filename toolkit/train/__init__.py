"""The training loop with its optimizer steps, callbacks and checkpoints."""
