"""Passes metrics to the `Plateau` schedules that follow them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import fmean

from toolkit.interfaces import StepResult
from toolkit.optim.schedules import Plateau
from toolkit.train.callbacks.intervals import due
from toolkit.train.run import Callback, Run

_KEY = "plateau"


class PlateauHook(Callback):
    """Passes on the mean loss of each role over `Plateau.every` steps, and validation losses.

    It comes before `SaveCallback`. Losses since the last mean are in the checkpoint, so that a resume changes nothing.
    """

    def on_metrics(self, run: Run, result: StepResult) -> None:
        for name, schedule in _plateaus(run):
            if schedule.metric == "loss" and name in result.by_role:
                run.state.extra.setdefault(_KEY, {}).setdefault(name, []).append(result.by_role[name].loss)

    def after_step(self, run: Run) -> None:
        for name, schedule in _plateaus(run):
            if schedule.metric == "loss" and due(run.state.step, schedule.every):
                run.flush_metrics()
                losses = run.state.extra.get(_KEY, {}).pop(name, [])
                if finite := [loss for loss in losses if math.isfinite(loss)]:
                    schedule.observe(fmean(finite))

    def take(self, run: Run, values: Mapping[str, float]) -> None:
        """Passes on validation losses, by their logged name."""
        for _, schedule in _plateaus(run):
            if schedule.metric in values:
                schedule.observe(values[schedule.metric])


def _plateaus(run: Run) -> Iterator[tuple[str, Plateau]]:
    yield from ((name, role.schedule) for name, role in run.roles.items() if isinstance(role.schedule, Plateau))
