"""Keeps the time of a step and of a sample image for the plan of the next run.

It measures in memory and writes nothing itself: `remember` does, at the end of the run
(`toolkit.memory.kept_times`). Steps in which programs were compiled are left out. Added
by `jobs.process.trainer`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TypeVar

from toolkit.contracts.training import StepResult
from toolkit.memory.kept_times import RunTimes
from toolkit.train.run import Callback, Run

LEAST_STEPS = 10
"""Steps without a compiled program from which on their time is kept: the first ones
take longer."""

T = TypeVar("T")


class TimesCallback(Callback):
    """Remembers at the end of a run, also of one that was stopped.

    Example::

        times = TimesCallback(partial(remember_run_times, training_folder, key))
        samples = replace(samples, draw=times.timed(samples.draw))
        run.callbacks = [*run.callbacks, times]
    """

    included_in_step_time = False

    def __init__(self, remember: Callable[[RunTimes], None]) -> None:
        self._remember = remember
        self._steps_s: list[float] = []
        self._pictures_s: list[float] = []

    def timed(self, draw: Callable[[int], T]) -> Callable[[int], T]:
        """`draw`, whose times are kept."""

        def drawn(index: int) -> T:
            begin = time.perf_counter()
            picture = draw(index)
            self._pictures_s.append(time.perf_counter() - begin)
            return picture

        return drawn

    def on_metrics(self, run: Run, result: StepResult) -> None:
        if not result.compiled:
            self._steps_s.append(result.step_s)

    def on_end(self, run: Run, finished: bool) -> None:
        if len(self._steps_s) >= LEAST_STEPS:
            picture_s = median(self._pictures_s) if self._pictures_s else 0.0
            self._remember(RunTimes(median(self._steps_s), picture_s))
