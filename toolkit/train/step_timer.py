"""Wall time between optimizer steps, by what it was spent on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

TimerKey = Literal["step", "data", "outside"]


class StepTimer:
    """Seconds by key. Time counts as `step` unless it is inside a `track` block of another key."""

    def __init__(self) -> None:
        self._key: TimerKey = "step"
        self._since = time.monotonic()
        self._seconds: dict[TimerKey, float] = {"step": 0.0, "data": 0.0, "outside": 0.0}

    @contextmanager
    def track(self, key: TimerKey) -> Iterator[None]:
        """Counts the time inside the block as `key`: waiting for data, or work that belongs to no step. Nests."""
        self._add_elapsed()
        outer, self._key = self._key, key
        try:
            yield
        finally:
            self._add_elapsed()
            self._key = outer

    def lap(self) -> tuple[float, float]:
        """(step_s, data_s) since the last lap: seconds of steps with data loading, and of data loading alone."""
        self._add_elapsed()
        step_s, data_s = self._seconds["step"] + self._seconds["data"], self._seconds["data"]
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return step_s, data_s

    def _add_elapsed(self) -> None:
        now = time.monotonic()
        self._seconds[self._key] += now - self._since
        self._since = now
