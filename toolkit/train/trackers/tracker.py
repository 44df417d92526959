"""The contract between a run and the programs that draw its curves, and the table of those programs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.config.logging import LoggingConfig
from toolkit.registry import Registry


@dataclass(frozen=True)
class RunInfo:
    """What a tracker knows of the run it shows."""

    name: str
    """The job's name, followed by `/` and the process's where it has one."""

    folder: Path
    """The run's files."""

    step: int
    """Optimizer steps that were done when this process began: what is told of later steps is trained (again)."""

    options: LoggingConfig
    settings: dict[str, Any] = field(default_factory=dict)
    """The job's settings without secrets; empty unless the user wants them shown."""


class Tracker(ABC):
    """Shows one run. Made and called by one thread of its own, in the order of the steps.

    Its methods may take long and may raise: the run is not held up, and goes on without a tracker that failed.
    """

    def __init__(self, run: RunInfo) -> None:
        """Begins to show `run`, or goes on where an earlier process was."""
        self.run = run

    @abstractmethod
    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Finite numbers by name; a name's part before `/` is its group. May be called again for the same step."""

    @abstractmethod
    def image(self, step: int, name: str, path: Path) -> None:
        """An image file."""

    @abstractmethod
    def close(self) -> None:
        """All has been told."""


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
