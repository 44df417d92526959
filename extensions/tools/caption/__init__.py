"""`type: caption`, `run.py caption`: writes captions of a folder of images."""
