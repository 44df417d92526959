"""Experiment trackers: one class each, and the worker thread that feeds them."""
