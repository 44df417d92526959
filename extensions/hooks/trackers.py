"""Curves and images of a run in the trackers of a job.

The callback passes on the metrics of each step, the sample images and further values,
in the order of the steps. The trackers themselves are extensions, each in its own
thread. The run does not need them: its own record is metrics.jsonl.
`toolkit.train.callbacks.standard` adds it where the job names a tracker.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from operator import itemgetter
from pathlib import Path

from toolkit.config.sections.output import LoggingConfig
from toolkit.contracts.training import StepResult
from toolkit.files.run_files import METRICS
from toolkit.train.run import Callback, Run, Sampled, due
from toolkit.train.run_reader import rows_by_step
from toolkit.train.trackers.tracker import RunInfo, Tracker, open_tracker

from .averages import AVERAGE_OVER, LossByTimestep, RunningLoss
from .background import Background

logger = logging.getLogger(__name__)

WAIT_AT_END_S = 5.0

Call = Callable[[Tracker], None]


class TrackerThread:
    """Opens one tracker and calls it, in a thread of its own. An error is logged once,
    and ends the tracker.

    Example::

        thread = TrackerThread("tensorboard", info)
        thread.put(lambda tracker: tracker.scalars(1, {"loss/current": 0.12}))
        thread.end()
    """

    def __init__(self, name: str, run: RunInfo) -> None:
        self.name = name
        self._tracker: Tracker | None = None
        self._background = Background(name, self._give_up)
        self._background.later(partial(self._open, run))

    def put(self, call: Call) -> None:
        """Queues a call, which is ignored once the tracker is given up."""
        self._background.later(partial(self._make, call))

    def end(self) -> None:
        """No more calls will come: the tracker is closed after the last one."""
        self.put(lambda tracker: tracker.close())
        self._background.end()

    def wait(self, seconds: float) -> bool:
        """Waits at most so long for the tracker to be closed. Returns whether it is."""
        return self._background.wait(seconds)

    def _open(self, run: RunInfo) -> None:
        self._tracker = open_tracker(self.name, run)

    def _make(self, call: Call) -> None:
        if self._tracker:
            call(self._tracker)

    def _give_up(self, reason: str) -> None:
        logger.warning(f"{self.name} failed; the run continues without it: {reason}")
        tracker, self._tracker = self._tracker, None
        with suppress(Exception):
            if tracker:
                tracker.close()


class TrackerCallback(Callback):
    """Passes the metrics of each step, the sample images and what other callbacks `log`
    to every tracker.

    Nothing here waits for a tracker or depends on one: each has its own thread.

    Example::

        callbacks.append(TrackerCallback(section.logging, folder.name, folder))
    """

    def __init__(self, options: LoggingConfig, name: str, folder: Path) -> None:
        """name: of the run, for the trackers. folder: of its files.

        Events and metrics may come before `on_start`, which opens the trackers.
        """
        self.options = options
        self.name = name
        self.folder = folder
        self._threads: list[TrackerThread] = []
        self._averages = RunningLoss()
        self._bands = LossByTimestep()
        self._skipped = 0
        self._logged_step: float = -1  # the last step whose metrics were logged
        self._early: list[tuple[int, Callable[[], None]]] = []

    def on_start(self, run: Run) -> None:
        self._skipped = run.state.skipped
        with rows_by_step(self.folder / METRICS) as rows:
            for row in rows:  # restores the averages
                self._averages.add(row.get("epoch", 0), row.get("loss"))
        shown = RunInfo(self.name, self.folder, run.state.step, self.options)
        self._threads = [TrackerThread(name, shown) for name in self.options.trackers()]
        self._flush_up_to(run.state.step)

    def on_metrics(self, run: Run, result: StepResult) -> None:
        self._skipped += result.skipped
        epoch_before = self._averages.add(result.epoch, result.loss)
        if "t" in result.per_sample:
            self._bands.add(result.per_sample["t"], result.per_sample["loss"])
        values: dict[str, float | None] = {
            "loss/current": result.loss,
            "loss/average": self._averages.recent(),
            "loss/epoch": epoch_before,  # at the first step of the next epoch: a resume at that step logs it again
            "lr": result.lr,
            **{f"lr/{name}": lr for name, lr in result.lr_by_group.items()},
            "grad_norm": result.grad_norm,
            "time/step_s": result.step_s,
            "time/data_s": result.data_s,
            "skipped": self._skipped,
            **result.extra_metrics,
        }
        if due(result.step, self.options.log_every or AVERAGE_OVER):
            values |= self._loss_by_timestep()
        self._scalars(result.step, values)
        self._flush_up_to(result.step)

    def on_end(self, run: Run, finished: bool) -> None:
        if finished:
            # The steps since the last multiple of `log_every`.
            self.log(run.state.step, self._loss_by_timestep())
            self.log(run.state.step + 1, {"loss/epoch": self._averages.of_epoch()})
        self._close()

    def on_error(self, run: Run, error: BaseException) -> None:
        self._close()

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        self._in_order(step, partial(self._scalars, step, values))

    def on_sample(self, run: Run, sampled: Sampled) -> None:
        step = sampled.step
        for index, image in enumerate(sampled.files):
            self._in_order(step, partial(self._image, step, f"samples/{index}", image))

    # ------------------------------------------------------------ logging in the order
    # of the steps

    def _in_order(self, step: int, call: Callable[[], None]) -> None:
        """Logs values of a step at once, or after the step's own metrics: W&B accepts
        no decreasing steps."""
        if step <= self._logged_step:
            call()
        else:
            self._early.append((step, call))

    def _flush_up_to(self, last: float) -> None:
        """Logs the values that were kept for the steps up to `last`."""
        self._logged_step = last
        ready = [
            call
            for step, call in sorted(self._early, key=itemgetter(0))
            if step <= last
        ]
        self._early = [(step, call) for step, call in self._early if step > last]
        for call in ready:
            call()

    def _scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        finite = {
            name: float(value)
            for name, value in values.items()
            if value is not None and math.isfinite(value)
        }
        if not finite:
            return
        for thread in self._threads:
            thread.put(lambda tracker: tracker.scalars(step, finite))

    def _image(self, step: int, name: str, path: Path) -> None:
        for thread in self._threads:
            thread.put(lambda tracker: tracker.image(step, name, path))

    def _loss_by_timestep(self) -> dict[str, float]:
        return {
            f"loss_by_t/{band}": mean for band, mean in self._bands.pop_means().items()
        }

    def _close(self) -> None:
        """Closes the trackers and waits a little for them; the run does not depend on
        it."""
        self._flush_up_to(math.inf)
        for thread in self._threads:
            thread.end()
        until = time.monotonic() + WAIT_AT_END_S
        for thread in self._threads:
            if not thread.wait(max(0.0, until - time.monotonic())):
                logger.warning(
                    f"{thread.name} did not finish within {WAIT_AT_END_S:g} s: not waiting for it"
                )
