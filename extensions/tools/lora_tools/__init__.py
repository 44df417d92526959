"""Tools for LoRA files: `inspect`, `convert`, `resize`, `scale`, `merge`, `extract` and
`post_hoc_ema`."""
