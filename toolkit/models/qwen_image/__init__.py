"""Qwen-Image-Edit-2509 and related models: a dual-stream transformer with 0 to 3
control images."""
