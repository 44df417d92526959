"""Checks of `validation` and `stop_when` in an `sd_trainer` section. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.config.process import Finding
from toolkit.config.validation import LOSS
from toolkit.errors import did_you_mean

if TYPE_CHECKING:
    from toolkit.config.base import Key
    from toolkit.config.datasets_job import DatasetsJob

_METRIC = ("stop_when", "metric")


def check_measuring(section: DatasetsJob) -> Iterable[Finding]:
    """A metric that no run would ever measure."""
    if section.stop_when:
        yield from _check_metric(section, _METRIC, section.stop_when.metric, section.logged_numbers())
    if section.train.lr_scheduler == "plateau":
        metric = str(section.train.lr_scheduler_params.get("metric", "loss"))
        known = [name for name in section.logged_numbers() if name == "loss" or name.startswith(LOSS)]
        yield from _check_metric(section, ("train", "lr_scheduler_params"), metric, known)


def _check_metric(section: DatasetsJob, key: Key, metric: str, known: Sequence[str]) -> Iterable[Finding]:
    if metric in known:
        return
    if metric.startswith(LOSS) and section.validation is None:
        yield Finding(key, f"{metric!r} needs the section 'validation'. Add it, or use 'loss'.")
    else:
        yield Finding(key, f"{metric!r} is no number that is measured. {did_you_mean(metric, known)}")


def note_measuring(section: DatasetsJob) -> Iterable[Finding]:
    """A stop that cannot come, and a validation of what is trained on."""
    steps = 0 if section.train.epochs else section.train.steps
    if section.stop_when and steps and section.stop_when.min_steps >= steps:
        message = f"{section.stop_when.min_steps}: the training ends at step {steps} anyway."
        yield Finding(("stop_when", "min_steps"), message)
    if section.stop_when and section.stop_when.metric.startswith(LOSS) and section.validation:
        yield from _note_few_validations(section, steps)
    if section.validation and section.validation.folder_path is not None:
        folder = section.validation.folder_path
        if _resolved(folder) in {_resolved(dataset.folder_path) for dataset in section.datasets}:
            message = f"{folder!r} is trained on as well: a low loss says nothing of other images."
            yield Finding(("validation", "folder_path"), message)


def _note_few_validations(section: DatasetsJob, steps: int) -> Iterable[Finding]:
    every, smooth = section.validation.every, section.stop_when.smooth
    if section.validation.every_n_epochs or (every and not steps):
        return  # how many there will be is known with the images only
    times = 1 + steps // every if every else 1
    if times < smooth:
        message = f"no effect: {smooth} validations are never reached, there are {times} before the end."
        yield Finding(("stop_when", "smooth"), f"{message} Lower it, or 'validation.every'.")


def _resolved(path: str) -> Path:
    return Path(path).expanduser().resolve()
