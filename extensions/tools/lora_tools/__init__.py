"""Tools for LoRA files: `inspect`, `convert`, `resize`, `scale`, `merge`, `extract`,
`post_hoc_ema`."""
