"""The interface of experiment trackers, and the thread that runs one.

A tracker has its own background thread with a bounded queue, so that training never
waits for it. Each is an extension that names its class as `tracker`. The job chooses
trackers by name in `logging`. `callbacks.trackers` starts the workers and passes them
the values.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from toolkit.config.sections.output import LoggingConfig
from toolkit.extension import discover


@dataclass(frozen=True)
class RunInfo:
    """The facts about a run that a tracker gets.

    >>> info = RunInfo("maya", Path("output/maya"), step=0, options=LoggingConfig())
    >>> info.settings
    {}
    """

    name: str
    """The job's name, followed by `/` and the process's where it has one."""

    folder: Path
    """The run's files."""

    step: int
    """Optimizer steps done when this process started: later steps are trained
    (again)."""

    options: LoggingConfig
    settings: dict[str, Any] = field(default_factory=dict)
    """The job's settings without secrets; empty unless the user wants them logged."""


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


logger = logging.getLogger(__name__)

MAX_QUEUED = 10_000
"""Calls that wait for a slow tracker at most."""

Call = Callable[[Tracker], None]


class TrackerWorker:
    """Calls one tracker from its own thread, in order.

    An error is logged once, and ends the tracker. When the queue is full, the oldest
    calls are dropped. The thread is a daemon: a tracker that hangs does not keep the
    process alive.

    Example::

        worker = TrackerWorker("tensorboard")
        worker.start(partial(open_tracker, worker.name, info))
        worker.put(lambda tracker: tracker.scalars(1, {"loss/current": 0.12}))
        worker.end()
    """

    def __init__(self, name: str, most: int = MAX_QUEUED) -> None:
        """name: of the tracker, for messages."""
        self.name = name
        self.most = most
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._given_up = self._has_dropped = False
        self._thread: threading.Thread | None = None

    def start(self, open_tracker: Callable[[], Tracker]) -> None:
        """Opens the tracker in the thread; calls queued before are kept."""
        self._thread = threading.Thread(
            target=self._work,
            args=(open_tracker,),
            daemon=True,
            name=f"tracker-{self.name}",
        )
        self._thread.start()

    def put(self, call: Call) -> None:
        """Queues a call; returns at once. When `most` calls are waiting, the oldest one
        is dropped; the first time this is logged. Calls after the tracker was given up
        are ignored."""
        if self._given_up:
            return
        if self._calls.qsize() >= self.most:
            with suppress(Empty):  # the thread may just have taken it
                self._calls.get_nowait()
            if not self._has_dropped:
                logger.warning(
                    f"{self.name} queue is full: dropping its oldest values (metrics.jsonl has them all)"
                )
            self._has_dropped = True
        self._calls.put(call)

    def end(self) -> None:
        """No more calls will come: the tracker is closed after the last one."""
        self._calls.put(None)

    def wait(self, seconds: float) -> bool:
        """Waits at most `seconds` for the tracker to be closed. Returns whether it
        is."""
        if self._thread:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def _work(self, open_tracker: Callable[[], Tracker]) -> None:
        tracker = None
        try:
            tracker = open_tracker()
            while call := self._calls.get():
                call(tracker)
            tracker.close()
        except Exception as error:  # noqa: BLE001 - whatever a tracker's package raises: the run matters more
            self._given_up = True
            with suppress(Empty):
                while True:
                    self._calls.get_nowait()
            reason = (
                f"{type(error).__name__}: {error}"
                if str(error)
                else type(error).__name__
            )
            logger.warning(
                f"{self.name} failed; the run continues without it: {reason}"
            )
            with suppress(Exception):
                if tracker:
                    tracker.close()
