"""The training loop, what it is given, what watches it, and how it is saved and resumed."""
