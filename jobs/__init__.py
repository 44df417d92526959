"""A job: a name and an ordered list of processes. `run.py` loads one, builds it and
runs it."""

from jobs.job import BaseJob, ExtensionJob, JobOptions

__all__ = ["BaseJob", "ExtensionJob", "JobOptions"]
