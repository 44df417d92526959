"""Qwen-Image-Edit-2509 and its kin: a dual-stream transformer with 0 to 3 reference images."""
