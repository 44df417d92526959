"""Builds the callbacks of every trainer, in call order, from its section and what it saves, measures and samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.config.output import SampleIntervalConfig, SaveConfig
from toolkit.config.sections import TrainerConfig
from toolkit.files.log import StatusLine
from toolkit.files.run_files import EVENTS, GRAPH, EventLog
from toolkit.registry import FLUXFLOW_FILES, load_object
from toolkit.train.callbacks.early_stopping import EarlyStopping, PlateauCallback
from toolkit.train.callbacks.metrics import MetricsCallback
from toolkit.train.callbacks.overview import OverviewCallback
from toolkit.train.callbacks.sample import GenerateImage, SampleCallback, SampleSet
from toolkit.train.callbacks.save import PrepareNetwork, SaveCallback
from toolkit.train.callbacks.status import ControlFilesCallback, StatusCallback, ask_to_stop
from toolkit.train.callbacks.tool_at_saves import ToolCallback, diagrams_at_saves, publish_at_end, report_at_saves
from toolkit.train.callbacks.trackers import TrackerCallback
from toolkit.train.callbacks.validation import Measure, ValidationCallback
from toolkit.train.callbacks.watchdog import WatchdogCallback
from toolkit.train.run import Callback, Interval

Event = Callable[..., None]
"""Records an event by name and details: `event("save", step=4)`."""


@dataclass(frozen=True)
class Validation:
    """What is measured at the `validation` interval."""

    measure: Measure
    identity: str
    """Hash of what is measured; losses of another one do not compare."""


@dataclass(frozen=True)
class Samples:
    """What is generated at the `sample` interval."""

    draw: GenerateImage
    texts: Sequence[str]
    """What each image shows, such as its prompt."""

    first: Sequence[str] | None = None
    """The same of the images before step 1, whose indices follow; None: those of `texts`."""

    first_format: str = ""
    """Their file format."""


@dataclass(frozen=True)
class Reporting:
    """Outputs of a run: trackers, diagrams and report of its `logging` section, events.jsonl, and the status line."""

    tracking: tuple[TrackerCallback | ToolCallback, ...]
    event: Event
    status: StatusLine
    report: tuple[ToolCallback, ...] = ()
    """Comes behind the status of the run, which it shows."""

    overview: tuple[OverviewCallback, ...] = ()
    """Has the last word: where the sheet of all samples is."""

    @classmethod
    def of(cls, section: TrainerConfig, folder: Path, status: StatusLine) -> Reporting:
        """folder: of the run's files."""
        logging, save = section.logging, section.save
        tracking: list[TrackerCallback | ToolCallback] = []
        if logging.trackers():
            # `<job>/<process>`, or the job's
            name = f"{folder.parent.name}/{folder.name}" if section.name else folder.name
            tracking.append(TrackerCallback(logging, name, folder))
        if logging.diagrams and save.fluxflow_files == "none":
            tracking.append(diagrams_at_saves(folder))
        elif logging.diagrams:  # FluxFlow's guide has them in the folder above, under its own names
            ending = "" if save.fluxflow_files == "only" else f"_{folder.name}"
            tracking.append(diagrams_at_saves(folder, folder.parent / GRAPH, ending))
        report = [report_at_saves(folder)] if logging.report else []
        if isinstance(save, SaveConfig) and save.push_to_hub:
            report.append(publish_at_end(folder, save.hf_repo_id, save.hf_private))
        overview = []
        if section.sample and section.sample.overview:
            # The images to be learned, without regularization images; nothing where samples have no prompts.
            datasets = [data for data in getattr(section, "datasets", ()) if data.folder_path and not data.is_reg]
            learned = [Path(data.folder_path).expanduser() for data in datasets]
            samples: Iterable[Any] = getattr(section, "sample_pictures", tuple)()
            references = [[Path(path).expanduser() for path in sample.ctrl_img] for sample in samples]
            overview.append(OverviewCallback(folder, learned, references))
        # The overview comes behind the log of events, which has the prompts.
        log = EventLog(folder / EVENTS)
        event = _fan_out([log.add, *(callback.event for callback in (*tracking, *report, *overview))])
        return cls(tuple(tracking), event, status, tuple(report), tuple(overview))


def standard_callbacks(
    section: TrainerConfig,
    reporting: Reporting,
    prepare_weights: PrepareNetwork,
    validation: Validation | None = None,
    samples: Samples | None = None,
) -> list[Callback]:
    """The callbacks of a section. prepare_weights: as of `SaveCallback`."""
    save, event = section.save, reporting.event
    callbacks: list[Callback] = []
    if save.fluxflow_files != "none" and section.name:
        named = load_object(FLUXFLOW_FILES)(save.fluxflow_files)
        event = _fan_out([event, named.event])
        callbacks.append(named)
    interval, keep = Interval(*save.interval()), save.files_to_keep()
    saving = SaveCallback(prepare_weights, interval, keep, save.max_states_to_keep, event, save.states)
    actions: dict[str, Any] = {"save_now": saving.save_now, "stop": ask_to_stop}
    # Saving comes before sampling: a crash while sampling loses nothing. Validation comes before saving: its results
    # are in the checkpoint of the step.
    callbacks += [MetricsCallback(), *_measuring(section, validation, saving), saving]
    if samples:
        sampling = _sampling(section, samples, event)
        actions["sample_now"] = sampling.sample_now
        callbacks.append(sampling)
    # The status comes behind all that writes files: "finished" means that every file is there.
    callbacks += [
        ControlFilesCallback(actions),
        *reporting.tracking,
        StatusCallback(reporting.status, section.logging.log_every),
        *reporting.report,
        WatchdogCallback(),
        *reporting.overview,
    ]
    return callbacks


def log_of(callbacks: Iterable[Callback]) -> Callable[[int, dict[str, float]], None]:
    """The implementation of `run.log` with these callbacks."""
    return _fan_out([callback.log for callback in callbacks if isinstance(callback, TrackerCallback)])


def _fan_out(listeners: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def call_all(*arguments: Any, **details: Any) -> None:
        for listener in listeners:
            listener(*arguments, **details)

    return call_all


def _measuring(section: TrainerConfig, validation: Validation | None, saving: SaveCallback) -> Iterator[Callback]:
    """The callbacks of `validation`, a plateau schedule and `stop_when`: the last two see the losses of the first."""
    settings, on_stop = section.validation, lambda run: None
    if validation and settings:
        validating = ValidationCallback(
            validation.measure,
            validation.identity,
            Interval(settings.every, settings.every_n_epochs),
            save_best=lambda run: saving.prepare_network(run, "best")(),
        )
        on_stop = validating.validate
        yield validating
    # The schedule of any role may follow its loss: by `train`, or by its own entry in `optimizers`.
    entries = [entry for _, entry in getattr(section, "optimizers", None) or ()]
    if any(settings.lr_scheduler == "plateau" for settings in (section.train, *entries)):
        yield PlateauCallback()
    if section.stop_when:
        yield EarlyStopping(section.stop_when, on_stop)


def _sampling(section: TrainerConfig, samples: Samples, event: Event) -> SampleCallback:
    settings = section.sample or SampleIntervalConfig()  # there may be only images before step 1
    texts = (*samples.texts, *(samples.first or ()))
    first = regular = SampleSet(range(len(samples.texts)), settings.format)
    if samples.first is not None:
        first = SampleSet(range(len(samples.texts), len(texts)), samples.first_format)
    return SampleCallback(
        samples.draw,
        regular,
        Interval(*settings.interval(), start=settings.sample_start_step),
        first=first if section.draws_first() else None,
        at_each_start=section.train.force_first_sample,
        event=event,
        texts=texts,
    )
