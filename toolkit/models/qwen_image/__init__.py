"""Qwen-Image-Edit-2509 and related models: a dual-stream transformer with 0 to 3
control images.

`family` has their facts, `layered` the facts of Qwen-Image-Layered; both are listed in
`toolkit.registry`. `model` is the `DiffusionModel`, which is imported when a model is
loaded. `processor` is for users' own scripts. This package itself imports no torch.
"""
