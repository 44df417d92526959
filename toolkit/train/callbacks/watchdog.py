"""Two callbacks that watch a run from outside.

`WatchdogCallback` writes the stack of every thread to a file when no step finished for
a very long time, so that a hang can be understood. `MemoryEstimateCheck` compares the
estimated peak memory with the measured one, once, after the first step. Neither stops a
run. `standard` adds the first, the trainers the second (`memory_check`).
"""

from __future__ import annotations

import faulthandler
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from toolkit.contracts.training import StepResult
from toolkit.system.device import peak_memory, reset_peak_memory
from toolkit.train.run import Callback, Run

logger = logging.getLogger(__name__)

FILE = "stacks.txt"
MIN_STALL_S = 600.0
TIMES_MEDIAN = 10


class WatchdogCallback(Callback):
    """Watches from its own thread and logs one warning per stall; it never ends the
    run.

    Example::

        callbacks.append(WatchdogCallback(least_s=600))
    """

    included_in_step_time = False

    def __init__(self, least_s: float = MIN_STALL_S, look_every_s: float = 5.0) -> None:
        """least_s: shortest stall in seconds. look_every_s: seconds between two
        checks."""
        self.least_s = least_s
        self.look_every_s = look_every_s
        self._recent_s: deque[float] = deque(maxlen=50)
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def on_start(self, run: Run) -> None:
        self._last = time.monotonic()
        self._warned = False
        self._thread = threading.Thread(
            target=self._look, args=(run,), daemon=True, name="watchdog"
        )
        self._thread.start()

    def on_metrics(self, run: Run, result: StepResult) -> None:
        if not result.compiled:
            self._recent_s.append(result.step_s)

    def after_step(self, run: Run) -> None:
        self._last = time.monotonic()
        self._warned = False

    def on_end(self, run: Run, finished: bool) -> None:
        self._done.set()
        if self._thread:
            self._thread.join()

    def on_error(self, run: Run, error: BaseException) -> None:
        self.on_end(run, False)

    def _look(self, run: Run) -> None:
        while not self._done.wait(self.look_every_s):
            silent_s = time.monotonic() - self._last
            limit_s = max(
                self.least_s,
                TIMES_MEDIAN * (median(self._recent_s) if self._recent_s else 0),
            )
            if silent_s > limit_s and not self._warned:
                self._warned = True
                message = (
                    f"no step finished for {silent_s:.0f} s (step {run.state.step})"
                )
                try:
                    with (run.folder / FILE).open("a", encoding="utf-8") as file:
                        file.write(message + "\n")
                        file.flush()
                        faulthandler.dump_traceback(file, all_threads=True)
                    logger.warning(
                        f"{message}; where every thread stands is in {run.folder / FILE}"
                    )
                except OSError as error:
                    logger.warning(
                        f"{message}; where every thread stands could not be written: {error}"
                    )


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
        reset_peak_memory(device)
        return [MemoryEstimateCheck(predict, lambda: peak_memory(device), True)]
    if STATUS.exists():
        return [MemoryEstimateCheck(predict, peak_resident, False)]
    return []


def peak_resident() -> int:
    """Peak resident memory of this process in bytes, mapped files included (Linux)."""
    _, _, rest = STATUS.read_text(encoding="utf-8").partition("VmHWM:")
    return 1024 * int(rest.split()[0])
