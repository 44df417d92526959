"""Where the wall time between optimizer steps goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

TimerKey = Literal["step", "data", "outside"]


class StepTimer:
    """Seconds by account: every moment belongs to `step`, unless a block charges it to another one."""

    def __init__(self) -> None:
        self._account: TimerKey = "step"
        self._mark = time.monotonic()
        self._spent: dict[TimerKey, float] = {"step": 0.0, "data": 0.0, "outside": 0.0}

    @contextmanager
    def track(self, account: TimerKey) -> Iterator[None]:
        """Time inside the block goes to `account`: waiting for data, or work that belongs to no step. Nests."""
        self._book()
        outer, self._account = self._account, account
        try:
            yield
        finally:
            self._book()
            self._account = outer

    def lap(self) -> tuple[float, float]:
        """(step_s, data_s) since the last lap: seconds of step and data, and those of data alone."""
        self._book()
        step_s, data_s = self._spent["step"] + self._spent["data"], self._spent["data"]
        self._spent = dict.fromkeys(self._spent, 0.0)
        return step_s, data_s

    def _book(self) -> None:
        now = time.monotonic()
        self._spent[self._account] += now - self._mark
        self._mark = now
