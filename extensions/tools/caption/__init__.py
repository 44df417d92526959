"""`type: caption`, `run.py caption`: writes captions for a folder of images."""
