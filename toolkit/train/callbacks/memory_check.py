"""Compares the estimated peak memory with the measured one, once, after the first step.
It stops nothing. The trainers add it (`memory_check`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from toolkit.train.run import Callback, Run

logger = logging.getLogger(__name__)

REPORT_IF_OFF_BY = 0.10
"""Largest relative error of the estimate that is not mentioned."""

REPORT_IF_OFF_BY_BYTES = int(0.5e9)
"""Largest error in bytes that is not mentioned: workspaces of libraries are most of
what a small model takes."""


class MemoryEstimateCheck(Callback):
    """Measures after the first step of this process, and so after the trial of the
    largest batch.

    Example::

        run.callbacks = [*run.callbacks, *memory_check(predict, device)]
    """

    included_in_step_time = False

    def __init__(
        self, predict: Callable[[bool], int], measure: Callable[[], int], logged: bool
    ) -> None:
        """predict: estimated peak in bytes so far; its argument says whether the run
        was resumed with optimizer state. measure: the measured peak in bytes. logged:
        whether a line is logged besides the event.
        """
        self.predict = predict
        self.measure = measure
        self.logged = logged
        self._resumed: bool | None = False

    def on_start(self, run: Run) -> None:
        self._resumed = run.state.step > 0

    def after_step(self, run: Run) -> None:
        if self._resumed is None:
            return
        predicted = self.predict(self._resumed)
        measured = self.measure()
        self._resumed = None
        run.event(
            "memory",
            step=run.state.step,
            predicted_bytes=predicted,
            measured_bytes=measured,
        )
        if self.logged:
            more = comparison(predicted, measured)
            logger.info(
                f"memory at the first step: {measured / 1e9:.2f} GB, predicted {predicted / 1e9:.2f} GB{more}"
            )


def comparison(predicted: int, measured: int) -> str:
    """By how much measured bytes differ from the predicted ones, to be put behind both.

    Empty unless the difference is above both `REPORT_IF_OFF_BY` (a share of the
    prediction) and `REPORT_IF_OFF_BY_BYTES`.

    >>> comparison(predicted=10 * 10**9, measured=15 * 10**9)
    ': 50% more than predicted'
    """
    off = measured / max(1, predicted) - 1
    if (
        abs(off) <= REPORT_IF_OFF_BY
        or abs(predicted - measured) <= REPORT_IF_OFF_BY_BYTES
    ):
        return ""
    return f": {abs(off):.0%} {'more' if off > 0 else 'less'} than predicted"


STATUS = Path("/proc/self/status")


def memory_check(
    predict: Callable[[bool], int], device: torch.device
) -> list[MemoryEstimateCheck]:
    """The check, where memory can be measured; resets the peak of a GPU. predict: as of
    `MemoryEstimateCheck`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        peak = partial(torch.cuda.max_memory_allocated, device)
        return [MemoryEstimateCheck(predict, peak, True)]
    if STATUS.exists():
        return [MemoryEstimateCheck(predict, peak_resident, False)]
    return []


def peak_resident() -> int:
    """Peak resident memory of this process in bytes, mapped files included (Linux)."""
    _, _, rest = STATUS.read_text(encoding="utf-8").partition("VmHWM:")
    return 1024 * int(rest.split()[0])
