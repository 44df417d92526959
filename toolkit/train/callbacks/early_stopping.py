"""Early stopping: ends a run as finished once the mean of a metric is low enough."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from toolkit.interfaces import StepResult
from toolkit.train.callbacks.intervals import due
from toolkit.train.run import Callback, Run

logger = logging.getLogger(__name__)

_KEY = "stop_when"


class EarlyStopping(Callback):
    """Keeps the last finite values of one metric in the checkpoint, so that a resumed run stops at the same step."""

    on_stop: Callable[[Run], None] = staticmethod(lambda run: None)
    """Called when the metric is low enough, before the step is saved."""

    def __init__(self, settings: Any) -> None:
        """settings: a `stop_when` section."""
        self.settings = settings

    def on_start(self, run: Run) -> None:
        self._saved(run)
        self._check(run)

    def on_metrics(self, run: Run, result: StepResult) -> None:
        self.update(run, result.logged())

    def update(self, run: Run, values: Mapping[str, float]) -> None:
        """Takes metrics by their logged name, of a step or of a validation."""
        if self.settings.metric in values:
            self._add(run, values[self.settings.metric])

    def after_step(self, run: Run) -> None:
        if due(run.state.step, self.settings.check_every):
            run.flush_metrics()
            self._check(run)

    def _saved(self, run: Run) -> dict[str, Any]:
        """The saved values; those of another metric are dropped."""
        saved = run.state.extra.get(_KEY, {})
        if saved.get("metric") != self.settings.metric:
            saved = run.state.extra[_KEY] = {"metric": self.settings.metric, "values": []}
        return saved

    def _add(self, run: Run, value: float) -> None:
        saved = self._saved(run)
        if math.isfinite(value) and run.early_stop_reason is None:  # the values that ended the run are kept
            saved["values"] = [*saved["values"], value][-self.settings.smooth :]

    def _check(self, run: Run) -> None:
        reason = stop_reason(self.settings, run.state.step, run.state.extra)
        if reason:
            logger.info(f"{reason} at step {run.state.step}: the run is finished")
            run.early_stop_reason = run.status_fields["reason"] = reason
            self.on_stop(run)


def stop_reason(settings: Any, step: int, extra: Mapping[str, Any]) -> str | None:
    """Why `stop_when` settings (or None) end a run with this `TrainState` step and extra; None where they do not."""
    if settings is None or step == 0 or step < settings.min_steps or not due(step, settings.check_every):
        return None
    saved = extra.get(_KEY, {})
    values = saved.get("values", [])[-settings.smooth :]
    if saved.get("metric") != settings.metric or len(values) < settings.smooth:
        return None
    mean = fmean(values)
    if mean >= settings.below:
        return None
    return f"stop_when: the mean {settings.metric} of {len(values)}, {mean:.6g}, is below {settings.below:g}"
