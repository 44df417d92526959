"""Watches a run from outside: writes the stack of every thread to a file when no step
finished for a very long time, so that a hang can be understood. It stops nothing.
`toolkit.train.callbacks.standard` adds it to every run."""

from __future__ import annotations

import faulthandler
import logging
import threading
import time
from collections import deque
from statistics import median

from toolkit.contracts.training import StepResult
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
