"""Base classes of processes."""

from jobs.process.base import BaseExtensionProcess, BaseProcess, BaseTrainProcess

__all__ = ["BaseExtensionProcess", "BaseProcess", "BaseTrainProcess"]
