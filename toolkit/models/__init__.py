"""Model families, each a folder behind `toolkit.interfaces.DiffusionModel`. Light: imports no torch."""
