"""Curves and images of a run in TensorBoard and Weights & Biases; the run itself relies on metrics.jsonl alone."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path

from toolkit.config.logging import LoggingConfig
from toolkit.interfaces import StepResult
from toolkit.train.callbacks.intervals import due
from toolkit.train.callbacks.loss_stats import AVERAGE_OVER, LossByTimestep, RunningLoss
from toolkit.train.callbacks.metrics import FILE as METRICS_FILE
from toolkit.train.callbacks.metrics import read_metrics
from toolkit.train.run import Callback, Run
from toolkit.train.trackers.tracker import RunInfo, open_tracker
from toolkit.train.trackers.worker import TrackerWorker

logger = logging.getLogger(__name__)

WAIT_AT_END_S = 5.0


class TrackerCallback(Callback):
    """Gives every tracker the numbers of each step, the sample images, and what other callbacks `log`.

    Nothing here waits for a tracker or depends on one: each has a thread of its own.
    """

    def __init__(self, options: LoggingConfig, name: str, folder: Path) -> None:
        """name: of the run, for the trackers. folder: of its files.

        It may be told things before `on_start`; trackers are opened only then.
        """
        self.options = options
        self.name = name
        self.folder = folder
        self._feeds = [TrackerWorker(tracker) for tracker in options.trackers()]
        self._averages = RunningLoss()
        self._bands = LossByTimestep()
        self._skipped = 0
        self._told: float = -1  # the last step whose numbers were told
        self._early: list[tuple[int, Callable]] = []

    def on_start(self, run: Run) -> None:
        self._skipped = run.state.skipped
        for line in read_metrics(self.folder / METRICS_FILE):  # the averages go on where they were
            self._averages.add(line.get("epoch", 0), line.get("loss"))
        settings = run.checkpoint_metadata.get("settings", {}) if self.options.log_config else {}
        shown = RunInfo(self.name, self.folder, run.state.step, self.options, settings)
        for feed in self._feeds:
            feed.start(partial(open_tracker, feed.name, shown))
        self._tell_up_to(run.state.step)

    def on_metrics(self, run: Run, result: StepResult) -> None:
        self._skipped += result.skipped
        epoch_before = self._averages.add(result.epoch, result.loss)
        if "t" in result.per_sample:
            self._bands.add(result.per_sample["t"], result.per_sample["loss"])
        values: dict[str, float | None] = {
            "loss/current": result.loss,
            "loss/average": self._averages.recent(),
            "loss/epoch": epoch_before,  # at the step after its last: a resume right behind an epoch tells it again
            "lr": result.lr,
            **{f"lr/{name}": lr for name, lr in result.lr_by_group.items()},
            "grad_norm": result.grad_norm,
            "time/step_s": result.step_s,
            "time/data_s": result.data_s,
            "skipped": self._skipped,
            **result.extra_metrics,
        }
        if due(result.step, self.options.log_every or AVERAGE_OVER):
            values |= self._by_noise_level()
        self._scalars(result.step, values)
        self._tell_up_to(result.step)

    def on_end(self, run: Run, finished: bool) -> None:
        if finished:
            self.log(run.state.step, self._by_noise_level())  # of the steps since the last multiple
            self.log(run.state.step + 1, {"loss/epoch": self._averages.of_epoch()})
        self._close()

    def on_error(self, run: Run, error: BaseException) -> None:
        self._close()

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """More numbers of a step, by name: what `run.log` does."""
        self._in_order(step, partial(self._scalars, step, values))

    def event(self, event: str, **details: object) -> None:
        """Hears of a run's events; those of kind `sample` name the images that were drawn."""
        if event == "sample":
            step, files = details["step"], details["files"]
            assert isinstance(step, int) and isinstance(files, list)  # as `SampleCallback` tells them
            for index, file in enumerate(files):
                picture = self.folder / "samples" / file
                self._in_order(step, partial(self._image, step, f"samples/{index}", picture))

    # ------------------------------------------------------------ telling

    def _in_order(self, step: int, tell: Callable[[], None]) -> None:
        """Tells what belongs to a step, or keeps it until the step's own numbers come: W&B takes no steps back."""
        if step <= self._told:
            tell()
        else:
            self._early.append((step, tell))

    def _tell_up_to(self, last: float) -> None:
        """Tells what was kept for the steps up to `last`."""
        self._told = last
        ready = [tell for step, tell in sorted(self._early, key=itemgetter(0)) if step <= last]
        self._early = [(step, tell) for step, tell in self._early if step > last]
        for tell in ready:
            tell()

    def _scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        finite = {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
        for feed in self._feeds if finite else ():
            feed.put(lambda tracker: tracker.scalars(step, finite))

    def _image(self, step: int, name: str, path: Path) -> None:
        for feed in self._feeds:
            feed.put(lambda tracker: tracker.image(step, name, path))

    def _by_noise_level(self) -> dict[str, float]:
        return {f"loss_by_t/{band}": mean for band, mean in self._bands.pop_means().items()}

    def _close(self) -> None:
        """Waits a little for what is still to be shown; the run does not depend on it."""
        self._tell_up_to(math.inf)
        for feed in self._feeds:
            feed.end()
        until = time.monotonic() + WAIT_AT_END_S
        for feed in self._feeds:
            if not feed.wait(max(0.0, until - time.monotonic())):
                logger.warning(f"{feed.name} did not finish within {WAIT_AT_END_S:g} s: not waiting for it")
