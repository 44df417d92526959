"""A job: a name and an ordered list of processes. `run.py` loads one, builds it and runs it."""

from jobs.job import BaseJob, ExtensionJob

__all__ = ["BaseJob", "ExtensionJob"]
