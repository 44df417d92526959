"""Qwen-Image-2.1: one transformer for text to image and editing, with 0 to 10 control
images in the same sequence as the text.

`family` has its facts and is listed in `toolkit.registry`; `model` is the
`DiffusionModel`, which is imported when a model is loaded. This package itself imports
no torch.
"""
