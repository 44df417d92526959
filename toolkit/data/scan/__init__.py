"""Folders and tables become samples: captions, control images and masks by name,
repeats, errors and warnings. `folder.py` begins the scan; `items.py` ends it with the
items that a job trains on. Imports no torch."""
