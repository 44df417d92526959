"""Chooses the number of threads of a training on a CPU, by the times of its first steps.

`toolkit.system.threads.ThreadChoice` decides; this callback passes it the times and
sets the number in PyTorch. It does nothing once blocks are compiled, because a program
is compiled for a number of threads. Added by `jobs.process.trainer`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from toolkit.contracts.training import StepResult
from toolkit.system.threads import ThreadChoice
from toolkit.train.run import Callback, Run

logger = logging.getLogger(__name__)


class ThreadsCallback(Callback):
    """Computes with as many threads as the choice says, from the first step on. Results
    differ by rounding at most.

    Example::

        choice = ThreadChoice(threads.free_cores())
        run.callbacks = [*run.callbacks, ThreadsCallback(choice)]
    """

    def __init__(
        self,
        choice: ThreadChoice,
        set_threads: Callable[[int], None] = torch.set_num_threads,
        report: Callable[[int], None] = lambda threads: None,
    ) -> None:
        """report: called once, with the number that was chosen first."""
        self.choice = choice
        self._set_threads = set_threads
        self._report = report
        self._is_reported = False

    def on_start(self, run: Run) -> None:
        self._set_threads(self.choice.threads)
        self._report_once()

    def _report_once(self) -> None:
        if self.choice.is_made and not self._is_reported:
            self._is_reported = True
            self._report(self.choice.threads)

    def on_metrics(self, run: Run, result: StepResult) -> None:
        # A program is compiled for a number of threads.
        if result.compiled or run.programs.used:
            return
        before = self.choice.threads
        if line := self.choice.observe(result.step_s):
            logger.info(line)
        if self.choice.threads != before:
            self._set_threads(self.choice.threads)
        self._report_once()
