"""YAML in, typed job out. Never imports torch: validation and `--dry-run` end here in a
second.

`load_job` is the door; `loader.py` lists its steps, one file each. The sections of a
job (`network`, `train`, ...) are one file each as well.
"""

from toolkit.config.reading.base import StrictModel
from toolkit.config.reading.loader import load_job
from toolkit.config.reading.process import (
    CallbackConfig,
    Diagnostic,
    JobConfig,
    JobContext,
    ProcessConfig,
    ProcessEntry,
)

__all__ = [
    "CallbackConfig",
    "Diagnostic",
    "JobConfig",
    "JobContext",
    "ProcessConfig",
    "ProcessEntry",
    "StrictModel",
    "load_job",
]
