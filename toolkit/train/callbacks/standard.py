"""Builds the callbacks of every trainer, in call order, from its section and what it saves, measures and samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.config.output import SampleIntervalConfig, SaveConfig
from toolkit.config.sections import TrainerConfig
from toolkit.files.log import StatusLine
from toolkit.files.run_files import EVENTS, EventLog
from toolkit.train.callbacks.early_stopping import EarlyStopping, PlateauCallback
from toolkit.train.callbacks.fluxflow_files import FluxflowFiles
from toolkit.train.callbacks.metrics import MetricsCallback
from toolkit.train.callbacks.overview import OverviewCallback
from toolkit.train.callbacks.sample import GenerateImage, SampleCallback, SampleSet
from toolkit.train.callbacks.save import PrepareNetwork, SaveCallback
from toolkit.train.callbacks.status import ControlFilesCallback, StatusCallback, ask_to_stop
from toolkit.train.callbacks.tool_at_saves import ToolCallback, diagrams_at_saves, publish_at_end, report_at_saves
from toolkit.train.callbacks.trackers import TrackerCallback
from toolkit.train.callbacks.validation import Measure, ValidationCallback
from toolkit.train.callbacks.watchdog import WatchdogCallback
from toolkit.train.diagrams import GRAPH
from toolkit.train.run import Callback, Interval, Run

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
        tracking: tuple[TrackerCallback | ToolCallback, ...] = ()
        if section.logging.trackers():
            # `<job>/<process>`, or the job's
            name = f"{folder.parent.name}/{folder.name}" if section.name else folder.name
            tracking = (TrackerCallback(section.logging, name, folder),)
        if section.logging.diagrams:
            tracking = (*tracking, diagrams_at_saves(folder, *_guides_graph(section, folder)))
        report: tuple[ToolCallback, ...] = (report_at_saves(folder),) if section.logging.report else ()
        if isinstance(section.save, SaveConfig) and section.save.push_to_hub:
            report = (*report, publish_at_end(folder, section.save.hf_repo_id, section.save.hf_private))
        events = EventLog(folder / EVENTS)
        listeners: list[Event] = [events.add, *(callback.event for callback in (*tracking, *report))]
        overview: tuple[OverviewCallback, ...] = ()
        if section.sample and section.sample.overview:
            overview = (OverviewCallback(folder, _folders_of_images(section), _references_of_samples(section)),)
            listeners.append(overview[0].event)  # behind the log of events, which has the prompts
        return cls(tracking, _fan_out(listeners), status, report, overview)


def _folders_of_images(section: TrainerConfig) -> Iterator[Path]:
    """The folders of the datasets whose images are to be learned, without regularization images."""
    for dataset in getattr(section, "datasets", ()):
        if dataset.folder_path and not dataset.is_reg:
            yield Path(dataset.folder_path).expanduser()


def _references_of_samples(section: TrainerConfig) -> Iterator[list[Path]]:
    """The reference images of each sample, in order; nothing where samples have no prompts."""
    for picture in getattr(section, "sample_pictures", tuple)():
        yield [Path(path).expanduser() for path in picture.ctrl_img]


def standard_callbacks(
    section: TrainerConfig,
    reporting: Reporting,
    prepare_weights: PrepareNetwork,
    validation: Validation | None = None,
    samples: Samples | None = None,
) -> list[Callback]:
    """The callbacks of a section. prepare_weights: as of `SaveCallback`."""
    save = section.save
    named: list[FluxflowFiles] = []
    if save.fluxflow_files != "none" and section.name:
        named = [FluxflowFiles(save.fluxflow_files)]
        reporting = replace(reporting, event=_fan_out([reporting.event, named[0].event]))
    status, event = reporting.status, reporting.event
    saving = SaveCallback(
        prepare_weights,
        Interval(*save.interval()),
        save.files_to_keep(),
        save.max_states_to_keep,
        event,
        save.states,
    )
    actions: dict[str, Any] = {"save_now": saving.save_now, "stop": ask_to_stop}
    # Saving comes before sampling: a crash while sampling loses nothing. Validation comes before saving: its results
    # are in the checkpoint of the step.
    callbacks: list[Callback] = [*named, MetricsCallback(), *_measuring(section, validation, saving), saving]
    if samples:
        sampling = _sampling(section, samples, reporting)
        actions["sample_now"] = sampling.sample_now
        callbacks.append(sampling)
    # The status comes behind all that writes files: "finished" means that every file is there.
    callbacks += [
        ControlFilesCallback(actions),
        *reporting.tracking,
        StatusCallback(status, section.logging.log_every),
        *reporting.report,
        WatchdogCallback(),
        *reporting.overview,
    ]
    return callbacks


def _guides_graph(section: TrainerConfig, folder: Path) -> tuple[Path | None, str]:
    """Where FluxFlow's guide has the diagrams of a process, and the end of their names; None: in its own folder."""
    place = section.save.fluxflow_files
    if place == "none":
        return None, ""
    return folder.parent / GRAPH, "" if place == "only" else f"_{folder.name}"


def log_of(callbacks: Iterable[Callback]) -> Callable[[int, dict[str, float]], None]:
    """The implementation of `run.log` with these callbacks."""
    return _fan_out([callback.log for callback in callbacks if isinstance(callback, TrackerCallback)])


def _fan_out(listeners: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def call_all(*arguments: Any, **details: Any) -> None:
        for listener in listeners:
            listener(*arguments, **details)

    return call_all


def _measuring(section: TrainerConfig, validation: Validation | None, saving: SaveCallback) -> list[Callback]:
    """The callbacks of `validation`, `stop_when` and a plateau schedule."""
    following = [PlateauCallback()] if _has_plateau(section) else []
    stopping = [EarlyStopping(section.stop_when)] if section.stop_when else []
    settings = section.validation
    if validation is None or settings is None:
        return [*following, *stopping]
    validating = ValidationCallback(
        validation.measure,
        validation.identity,
        Interval(settings.every, settings.every_n_epochs),
        save_best=lambda run: saving.prepare_network(run, "best")(),
    )
    for stop in stopping:
        stop.on_stop = validating.validate

    def pass_on_losses(run: Run, losses: dict[str, float]) -> None:
        for callback in following:
            callback.take(run, losses)
        for stop in stopping:
            stop.update(run, losses)

    validating.on_losses = pass_on_losses
    return [validating, *following, *stopping]


def _has_plateau(section: TrainerConfig) -> bool:
    """Whether the schedule of any role follows its loss: by `train`, or by its own entry in `optimizers`."""
    optimizers = getattr(section, "optimizers", None)
    entries = [entry for _, entry in optimizers] if optimizers is not None else []
    return any(settings.lr_scheduler == "plateau" for settings in (section.train, *entries))


def _sampling(section: TrainerConfig, samples: Samples, reporting: Reporting) -> SampleCallback:
    settings = section.sample or SampleIntervalConfig()  # there may be only images before step 1
    texts = (*samples.texts, *(samples.first or ()))
    first = regular = SampleSet(range(len(samples.texts)), settings.format)
    if samples.first is not None:
        first = SampleSet(range(len(regular.prompts), len(texts)), samples.first_format)
    return SampleCallback(
        samples.draw,
        regular,
        Interval(*settings.interval(), start=settings.sample_start_step),
        first=first if section.draws_first() else None,
        at_each_start=section.train.force_first_sample,
        event=reporting.event,
        texts=texts,
    )
