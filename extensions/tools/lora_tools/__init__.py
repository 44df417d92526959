"""Tools for LoRA files: `inspect`, `convert`, `resize`, `merge`, `extract` and
`post_hoc_ema`."""
