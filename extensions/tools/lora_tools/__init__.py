"""Tools for LoRA files: `inspect`, `convert`, `resize`, `merge`, `extract`, `post_hoc_ema`."""
