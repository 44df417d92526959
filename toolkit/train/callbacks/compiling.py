"""Logs once how long compiling the blocks has taken.

It compiles nothing itself (`toolkit.memory.compiling` does). The seconds are also kept,
so that the plan of the next run can include them. Added by `standard` where blocks are
compiled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from toolkit.train.run import Callback, Run

logger = logging.getLogger(__name__)

SETTLED_STEPS = 20
"""Optimizer steps in a row without a new program, after which none is expected."""


class CompilingCallback(Callback):
    """Silent where no program is compiled, and where they are given up: there the
    reason is in the log.

    Example::

        def keep(seconds: float) -> None:
            remember_compile_seconds(gpu_name(section.device), seconds)

        callbacks.append(CompilingCallback(keep))
    """

    def __init__(
        self, remember: Callable[[float], None] = lambda seconds: None
    ) -> None:
        """remember: keeps the seconds for the plan of the next run."""
        self._remember = remember
        self._seconds = 0.0
        self._since = 0
        self._said = False

    def on_start(self, run: Run) -> None:
        self._since = run.state.step

    def after_step(self, run: Run) -> None:
        seconds = run.programs.took.seconds
        if seconds != self._seconds:
            self._seconds = seconds
            self._since = run.state.step
        if run.state.step - self._since >= SETTLED_STEPS:
            self._say(run)

    def on_end(self, run: Run, finished: bool) -> None:
        self._say(run)

    def _say(self, run: Run) -> None:
        took = run.programs.took
        if self._said or not took.programs or not run.programs.used:
            return
        self._said = True
        self._remember(took.seconds)
        plural = "s" if took.programs > 1 else ""
        logger.info(f"compiled {took.programs} program{plural} in {took.seconds:.0f} s")
