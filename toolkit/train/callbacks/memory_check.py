"""Compares the estimated peak memory of a run with the measured one, once, after its first step."""

from __future__ import annotations

import logging
from collections.abc import Callable

from toolkit.train.run import Callback, Run

logger = logging.getLogger(__name__)

REPORT_IF_OFF_BY = 0.10
"""Largest relative error of the estimate that is not mentioned."""


class MemoryEstimateCheck(Callback):
    """Measures after the first step of this process, and so after the trial of the largest batch."""

    included_in_step_time = False

    def __init__(
        self,
        predict: Callable[[bool], int],
        measure: Callable[[], int],
        logged: bool,
        event: Callable[..., None],
    ) -> None:
        """predict: estimated peak in bytes so far; its argument says whether the run was resumed with optimizer state.
        measure: the measured peak in bytes. logged: whether a line is logged besides the event.
        """
        self.predict = predict
        self.measure = measure
        self.logged = logged
        self.event = event
        self._resumed: bool | None = False

    def on_start(self, run: Run) -> None:
        self._resumed = run.state.step > 0

    def after_step(self, run: Run) -> None:
        if self._resumed is None:
            return
        predicted, measured = self.predict(self._resumed), self.measure()
        self._resumed = None
        self.event("memory", step=run.state.step, predicted_bytes=predicted, measured_bytes=measured)
        if self.logged:
            logger.info(_message(predicted, measured))


def _message(predicted: int, measured: int) -> str:
    off = predicted / max(1, measured) - 1
    more = f": {abs(off):.0%} {'less' if off > 0 else 'more'} than predicted" if abs(off) > REPORT_IF_OFF_BY else ""
    return f"memory at the first step: {measured / 1e9:.2f} GB, predicted {predicted / 1e9:.2f} GB{more}"
