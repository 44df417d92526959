"""The interface of experiment trackers, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.config.logging import LoggingConfig
from toolkit.registry import Registry


@dataclass(frozen=True)
class RunInfo:
    """What a tracker knows of its run."""

    name: str
    """The job's name, followed by `/` and the process's where it has one."""

    folder: Path
    """The run's files."""

    step: int
    """Optimizer steps done when this process started: later steps are trained (again)."""

    options: LoggingConfig
    settings: dict[str, Any] = field(default_factory=dict)
    """The job's settings without secrets; empty unless the user wants them logged."""


class Tracker(ABC):
    """Shows one run. Created and called in its own thread, in the order of the steps.

    Its methods may take long and may raise: the run does not wait, and continues without a tracker that failed.
    """

    def __init__(self, run: RunInfo) -> None:
        """Starts tracking `run`, or resumes where an earlier process stopped."""
        self.run = run

    @abstractmethod
    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs finite numbers by name; the part before `/` is the group. May be called again for the same step."""

    @abstractmethod
    def image(self, step: int, name: str, path: Path) -> None:
        """Logs an image file."""

    @abstractmethod
    def close(self) -> None:
        """Called after the last value."""


TRACKERS = Registry(
    "tracker",
    {
        "tensorboard": "toolkit.train.trackers.tensorboard_tracker:TensorBoardTracker",
        "wandb": "toolkit.train.trackers.wandb_tracker:WandbTracker",
    },
)


def open_tracker(name: str, run: RunInfo) -> Tracker:
    """The tracker of this name, imported only now. Raises whatever its package raises."""
    return TRACKERS.load(name)(run)
