"""Model families, each a folder behind `toolkit.contracts.model.DiffusionModel`. Light:
imports no torch."""
