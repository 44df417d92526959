"""The classes that a process extends."""

from jobs.process.base import BaseExtensionProcess, BaseProcess
from jobs.process.train import BaseTrainProcess

__all__ = ["BaseExtensionProcess", "BaseProcess", "BaseTrainProcess"]
