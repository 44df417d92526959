"""Model families, each a folder behind `toolkit.contracts.ModelAdapter`. Light: imports no torch."""
