"""The interface of experiment trackers.

Each is an extension that names its class as `tracker`. The job chooses trackers by name
in `logging`. The callback of `trackers` in `AROUND_A_RUN` opens them, each in a thread
of its own, and passes them the values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from toolkit.config.sections.output import LoggingConfig
from toolkit.extension import discover


@dataclass(frozen=True)
class RunInfo:
    """The facts about a run that a tracker gets.

    >>> info = RunInfo("maya", Path("output/maya"), step=0, options=LoggingConfig())
    >>> info.options.trackers()
    ()
    """

    name: str
    """The job's name, followed by `/` and the process's where it has one."""

    folder: Path
    """The run's files."""

    step: int
    """Optimizer steps done when this process started: later steps are trained
    (again)."""

    options: LoggingConfig
    """The section `logging` of the job."""


class Tracker(ABC):
    """Shows one run. Created and called in its own thread, in the order of the steps.

    Its methods may take long and may raise: the run does not wait, and continues
    without a tracker that failed.

    Example::

        class PrintTracker(Tracker):
            def scalars(self, step: int, values: dict[str, float]) -> None:
                print(step, values)

            def image(self, step: int, name: str, path: Path) -> None:
                print(step, name, path)

            def close(self) -> None:
                pass
    """

    def __init__(self, run: RunInfo) -> None:
        """Starts tracking `run`, or resumes where an earlier process stopped."""
        self.run = run

    @abstractmethod
    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs finite numbers by name; the part before `/` is the group. May be called
        again for the same step."""

    @abstractmethod
    def image(self, step: int, name: str, path: Path) -> None:
        """Logs an image file."""

    @abstractmethod
    def close(self) -> None:
        """Called after the last value."""


def open_tracker(name: str, run: RunInfo) -> Tracker:
    """The tracker of this name, whose package is imported only now. Raises any error of
    that package."""
    cls = discover().part(name, "tracker", Tracker)  # type: ignore[type-abstract]
    return cls(run)
