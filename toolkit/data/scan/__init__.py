"""Folders and tables become samples: captions, control images and masks by name,
repeats, and what is wrong with them. `folder.py` begins, `items.py` ends with what a
job trains on. Imports no torch."""
