"""Model families, each a folder behind `toolkit.models.interface.DiffusionModel`. Light: imports no torch."""
