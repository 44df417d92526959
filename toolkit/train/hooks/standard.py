"""The hooks of every trainer, in the order they are called, from its section and what it saves, measures and draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.config.datasets_job import TrainerConfig
from toolkit.config.sample import SampleConfig
from toolkit.log import StatusLine
from toolkit.run_files import EVENTS
from toolkit.train.events import EventLog
from toolkit.train.hooks.control import ControlHook, ask_to_stop
from toolkit.train.hooks.intervals import Interval
from toolkit.train.hooks.metrics import MetricsHook
from toolkit.train.hooks.plateau import PlateauHook
from toolkit.train.hooks.sample import DrawPicture, PictureSet, SampleHook
from toolkit.train.hooks.save import PrepareNetwork, SaveHook
from toolkit.train.hooks.status import StatusHook
from toolkit.train.hooks.stop_when import StopHook
from toolkit.train.hooks.trackers import TrackerHook
from toolkit.train.hooks.validation import Measure, ValidationHook
from toolkit.train.hooks.watchdog import WatchdogHook
from toolkit.train.run import Hook, Run

Event = Callable[..., None]
"""Tells of something that happened, by name and details: `event("save", step=4)`."""


@dataclass(frozen=True)
class Validation:
    """What is measured of a run at its `validation` interval."""

    measure: Measure
    identity: str
    """Of what is measured; losses of another one do not compare."""


@dataclass(frozen=True)
class Samples:
    """What is drawn at its `sample` interval."""

    draw: DrawPicture
    texts: Sequence[str]
    """The prompt of each picture, those of `sample` and after them those of `first_sample`."""


@dataclass(frozen=True)
class Reporting:
    """Where a run's news go: the trackers of its `logging` section, events.jsonl, and the status line."""

    tracking: tuple[TrackerHook, ...]
    event: Event
    status: StatusLine

    @classmethod
    def of(cls, section: TrainerConfig, folder: Path, status: StatusLine) -> Reporting:
        """folder: of the run's files."""
        tracking: tuple[TrackerHook, ...] = ()
        if section.logging.trackers():
            # `<job>/<process>`, or the job's
            name = f"{folder.parent.name}/{folder.name}" if section.name else folder.name
            tracking = (TrackerHook(section.logging, name, folder),)
        events = EventLog(folder / EVENTS)
        return cls(tracking, _to_each([events.add, *(hook.event for hook in tracking)]), status)


def standard_hooks(
    section: TrainerConfig,
    reporting: Reporting,
    prepare_weights: PrepareNetwork,
    validation: Validation | None = None,
    samples: Samples | None = None,
) -> list[Hook]:
    """prepare_weights: copies what the files for a step hold, and gives what writes them."""
    status, event = reporting.status, reporting.event
    save = section.save
    saving = SaveHook(
        prepare_weights,
        Interval(*save.interval()),
        save.files_to_keep(),
        save.max_states_to_keep,
        event,
    )
    actions: dict[str, Any] = {"save_now": saving.save_now, "stop": ask_to_stop}
    # Saving comes before sampling: a crash in the less important one loses nothing. What is measured comes before
    # saving: the state of a step knows it.
    hooks: list[Hook] = [MetricsHook(), *_measuring(section, validation, saving), saving]
    if samples:
        sampling = _sampling(section, samples, reporting)
        actions["sample_now"] = sampling.sample_now
        hooks.append(sampling)
    # The status comes last: "finished" means that every file is there.
    hooks += [
        ControlHook(actions),
        *reporting.tracking,
        StatusHook(status, section.logging.log_every),
        WatchdogHook(),
    ]
    return hooks


def log_of(hooks: Iterable[Hook]) -> Callable[[int, dict[str, float]], None]:
    """What `run.log` does with these hooks."""
    return _to_each([hook.log for hook in hooks if isinstance(hook, TrackerHook)])


def _to_each(listeners: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def tell(*arguments: Any, **details: Any) -> None:
        for listener in listeners:
            listener(*arguments, **details)

    return tell


def _measuring(section: TrainerConfig, validation: Validation | None, saving: SaveHook) -> list[Hook]:
    """Those that `validation`, `stop_when` and a schedule that observes a value ask for."""
    following = [PlateauHook()] if section.train.lr_scheduler == "plateau" else []
    stopping = [StopHook(section.stop_when)] if section.stop_when else []
    settings = section.validation
    if validation is None or settings is None:
        return [*following, *stopping]
    validating = ValidationHook(
        validation.measure,
        validation.identity,
        Interval(settings.every, settings.every_n_epochs),
        save_best=lambda run: saving.prepare_network(run, "best")(),
    )
    for stop in stopping:
        stop.at_goal = validating.validate_once

    def heard(run: Run, losses: dict[str, float]) -> None:
        for hook in following:
            hook.take(run, losses)
        for stop in stopping:
            stop.take(run, losses)

    validating.heard = heard
    return [validating, *following, *stopping]


def _sampling(section: TrainerConfig, samples: Samples, reporting: Reporting) -> SampleHook:
    settings = section.sample or SampleConfig()  # there may be a `first_sample` alone
    usual = PictureSet(range(len(settings.samples)), settings.format)
    first = usual
    if section.first_sample:  # its prompts come after the usual ones
        first = PictureSet(range(len(usual.prompts), len(samples.texts)), section.first_sample.format)
    return SampleHook(
        samples.draw,
        usual,
        Interval(*settings.interval(), start=settings.sample_start_step),
        first=first if section.draws_first() else None,
        at_each_start=section.train.force_first_sample,
        event=reporting.event,
        texts=samples.texts,
    )
