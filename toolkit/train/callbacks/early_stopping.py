"""Callbacks that act on a metric.

`EarlyStopping` (`stop_when`) ends a run as finished once the mean of a metric is low
enough, or once the validation loss does not become lower any more. `PlateauCallback`
passes the mean loss on to `Plateau` schedules. The rule itself is in
`resumption.stop_reason`, because a start of the job asks it too. Added by `standard`,
after the validation, whose losses both need.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from statistics import fmean
from typing import Any

from toolkit.config.sections.train import CHECK_EVERY, StopWhenConfig
from toolkit.contracts.training import StepResult
from toolkit.optim.schedules import Plateau
from toolkit.train.paired import forecast
from toolkit.train.resumption import FORECAST, STOP_KEY, stop_reason
from toolkit.train.run import Callback, Run, due
from toolkit.train.run_reader import read_losses_by_image

logger = logging.getLogger(__name__)


class EarlyStopping(Callback):
    """Keeps the last finite values of one metric in the checkpoint, so that a resumed
    run stops at the same step. Without a bound it keeps the last forecast.

    Example::

        if section.stop_when:
            callbacks.append(EarlyStopping(section.stop_when))
    """

    def __init__(
        self,
        settings: StopWhenConfig,
        on_stop: Callable[[Run], None] = lambda run: None,
    ) -> None:
        """on_stop: called when the metric is low enough, before the step is saved."""
        self.settings = settings
        self.on_stop = on_stop

    def on_start(self, run: Run) -> None:
        self._saved(run)
        self._check(run)

    def on_metrics(self, run: Run, result: StepResult) -> None:
        self.update(run, result.logged())

    def on_validation(self, run: Run, losses: dict[str, float]) -> None:
        self.update(run, losses)
        if self.settings.below is not None or run.early_stop_reason is not None:
            return
        known = read_losses_by_image(run.folder)
        if run.state.step in known:  # not where a loss was not finite
            last = forecast(known, run.steps)
            self._saved(run)[FORECAST] = asdict(last) if last else {}

    def update(self, run: Run, values: Mapping[str, float]) -> None:
        """Takes metrics by their logged name, of a step or of a validation."""
        if self.settings.below is None:
            return
        value = values.get(self.settings.metric, math.nan)
        saved = self._saved(run)
        # The values that ended the run are kept.
        if math.isfinite(value) and run.early_stop_reason is None:
            saved["values"] = [*saved["values"], value][-self.settings.smooth :]

    def after_step(self, run: Run) -> None:
        if self.settings.below is None or due(run.state.step, CHECK_EVERY):
            run.flush_metrics()
            self._check(run)

    def _saved(self, run: Run) -> dict[str, Any]:
        """The saved values; the values of another metric are dropped."""
        saved: dict[str, Any] = run.state.extra.get(STOP_KEY, {})
        if saved.get("metric") != self.settings.metric:
            saved = run.state.extra[STOP_KEY] = {
                "metric": self.settings.metric,
                "values": [],
            }
        return saved

    def _check(self, run: Run) -> None:
        if reason := stop_reason(self.settings, run.state.step, run.state.extra):
            logger.info(f"{reason} at step {run.state.step}: the run is finished")
            run.early_stop_reason = run.status_fields["reason"] = reason
            self.on_stop(run)


_PLATEAU_KEY = "plateau"


class PlateauCallback(Callback):
    """Passes on the mean loss of each role over `Plateau.every` steps, and validation
    losses.

    It comes before `SaveCallback`. Losses since the last mean are in the checkpoint, so
    that a resume changes nothing.

    Example::

        callbacks = [PlateauCallback(), saving]  # in this order
    """

    def on_metrics(self, run: Run, result: StepResult) -> None:
        for name, schedule in _plateaus(run):
            if schedule.metric == "loss" and name in result.by_role:
                run.state.extra.setdefault(_PLATEAU_KEY, {}).setdefault(
                    name, []
                ).append(result.by_role[name].loss)

    def after_step(self, run: Run) -> None:
        for name, schedule in _plateaus(run):
            if schedule.metric == "loss" and due(run.state.step, schedule.every):
                run.flush_metrics()
                losses = run.state.extra.get(_PLATEAU_KEY, {}).pop(name, [])
                finite = [loss for loss in losses if math.isfinite(loss)]
                if finite:
                    schedule.observe(fmean(finite))

    def on_validation(self, run: Run, losses: dict[str, float]) -> None:
        for _, schedule in _plateaus(run):
            if schedule.metric in losses:
                schedule.observe(losses[schedule.metric])


def _plateaus(run: Run) -> Iterator[tuple[str, Plateau]]:
    for name, role in run.roles.items():
        if isinstance(role.schedule, Plateau):
            yield (name, role.schedule)
