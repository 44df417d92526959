"""Base classes of processes."""

from jobs.process.base import BaseExtensionProcess, BaseProcess
from jobs.process.train import BaseTrainProcess

__all__ = ["BaseExtensionProcess", "BaseProcess", "BaseTrainProcess"]
