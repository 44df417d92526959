"""Experiment trackers: one class each, and the worker thread that feeds them.

`tracker` has the interface and the registry, which loads the other modules by name when
a job uses them.
"""
