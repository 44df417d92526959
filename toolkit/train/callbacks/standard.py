"""Builds the callbacks of every trainer, in call order, from its section and what it
saves, measures and samples.

The order matters: each comment in `standard_callbacks` gives the reason. The callbacks
themselves are in the other modules of this folder. Called by `jobs.process.trainer`,
whose `build_callbacks` an extension can override.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from toolkit.config.sections.output import SampleIntervalConfig, SaveConfig
from toolkit.config.sections.trainer import TrainerConfig
from toolkit.errors import RunError, UserError
from toolkit.extension import discover
from toolkit.files.log import StatusLine
from toolkit.files.run_files import EVENTS, EventLog
from toolkit.memory.kept_times import remember_compile_seconds
from toolkit.registry import AROUND_A_RUN
from toolkit.system.nvidia import gpu_name
from toolkit.train.anomalies import SILENT_STEPS, steps_to_wait
from toolkit.train.callbacks.anomalies import AnomalyCallback
from toolkit.train.callbacks.compiling import CompilingCallback
from toolkit.train.callbacks.early_stopping import EarlyStopping, PlateauCallback
from toolkit.train.callbacks.metrics import MetricsCallback
from toolkit.train.callbacks.sample import SampleCallback, Samples
from toolkit.train.callbacks.save import PrepareNetwork, SaveCallback
from toolkit.train.callbacks.status import (
    ControlFilesCallback,
    StatusCallback,
    ask_to_stop,
)
from toolkit.train.callbacks.validation import Validation, ValidationCallback
from toolkit.train.now import RunNow
from toolkit.train.run import Callback, Interval, Run


def standard_callbacks(
    section: TrainerConfig,
    folder: Path,
    status: StatusLine,
    prepare_weights: PrepareNetwork,
    validation: Validation | None = None,
    samples: Samples | None = None,
    compiled: bool = False,
    now: RunNow | None = None,
) -> list[Callback]:
    """The callbacks of a section. folder: of the run's files. prepare_weights: as of
    `SaveCallback`. compiled: whether blocks are. now: as of `StatusCallback`."""
    save = section.save
    settings = section.sample or SampleIntervalConfig()
    interval = Interval(*save.interval())
    keep = save.files_to_keep()
    saving = SaveCallback(
        prepare_weights, interval, keep, save.max_states_to_keep, save.states
    )
    actions: dict[str, Any] = {"save_now": saving.save_now, "stop": ask_to_stop}
    callbacks: list[Callback] = []
    # Saving comes before sampling: a crash while sampling loses nothing. Validation
    # comes before saving: its results are in the checkpoint of the step.
    callbacks += [MetricsCallback(), *_measuring(section, validation, saving), saving]
    if samples:
        every = Interval(*settings.interval(), start=settings.sample_start_step)
        sampling = SampleCallback(
            samples,
            settings.format,
            every,
            section.draws_first(),
            section.train.force_first_sample,
        )
        actions["sample_now"] = sampling.sample_now
        callbacks.append(sampling)
    # The status comes behind all that writes files: "finished" means that every file is
    # there. The report and the upload come behind the status, which they show; the
    # sheet of all samples has the last word.
    callbacks += [ControlFilesCallback(actions), *_tracking(section, folder)]
    callbacks.append(StatusCallback(status, section.logging.log_every, now))
    if section.logging.report:
        callbacks += _around("report", folder)
    if isinstance(save, SaveConfig) and save.push_to_hub:
        callbacks += _around("publication", folder, save.hf_repo_id, save.hf_private)
    network = getattr(section, "network", None)
    if network:
        wait = steps_to_wait(
            network.module_dropout, network.rank_dropout, network.linear
        )
    else:
        wait = SILENT_STEPS
    anomalies = AnomalyCallback(
        EventLog(folder / EVENTS).add, dataset_of(section), wait
    )

    def keep_compile_time(seconds: float) -> None:
        remember_compile_seconds(gpu_name(section.device), seconds)

    return [
        *callbacks,
        *([CompilingCallback(keep_compile_time)] if compiled else []),
        *_around("watchdog"),
        anomalies,
        *_overview(section, folder),
    ]


def callbacks_of_extensions(section: TrainerConfig, first_rank: bool) -> list[Callback]:
    """What `callbacks` names, on this rank. Raises UserError or RunError where an
    extension's code fails."""
    if not section.callbacks:
        return []
    table = discover()
    made = []
    for entry in section.callbacks:
        cls = table.part(entry.type, "callback", Callback)
        if first_rank or cls.everywhere:
            try:
                made.append(cls(entry))
            except (UserError, RunError):
                raise
            except Exception as error:
                message = f"the callback {entry.type!r} cannot be made"
                raise RunError(f"{message}: {type(error).__name__}: {error}") from error
    return made


def run_name(folder: Path, section: TrainerConfig) -> str:
    """`<job>/<process>`, or the job's name. folder: of the run's files."""
    return f"{folder.parent.name}/{folder.name}" if section.name else folder.name


def _around(name: str, *arguments: Any) -> Iterator[Callback]:
    """One of `AROUND_A_RUN`; none where its part is left out."""
    if name in AROUND_A_RUN:
        yield AROUND_A_RUN.load(name)(*arguments)


def _do_nothing(run: Run) -> None:
    """Called before an early stop in a job without `validation`."""


def _measuring(
    section: TrainerConfig, validation: Validation | None, saving: SaveCallback
) -> Iterator[Callback]:
    """The callbacks of `validation`, a plateau schedule and `stop_when`: the last two
    see the losses of the first."""
    settings = section.validation
    on_stop: Callable[[Run], None] = _do_nothing
    if validation and settings:
        every = Interval(settings.every)
        validating = ValidationCallback(
            validation, every, lambda run: saving.prepare_network(run, "best")()
        )
        on_stop = validating.validate
        yield validating
    # The schedule of any role may follow its loss: by `train`, or by its own entry in
    # `optimizers`.
    schedules = {settings.lr_scheduler for _, settings in section.optimizers_used()}
    if "plateau" in schedules:
        yield PlateauCallback()
    if section.stop_when:
        yield EarlyStopping(section.stop_when, on_stop)


def _tracking(section: TrainerConfig, folder: Path) -> Iterator[Callback]:
    """The trackers and diagrams of `logging`."""
    logging = section.logging
    if logging.trackers():
        yield from _around("trackers", logging, run_name(folder, section), folder)
    if logging.diagrams:
        yield from _around("diagrams", folder, *section.diagrams_place(folder))


def _overview(section: TrainerConfig, folder: Path) -> Iterator[Callback]:
    if not (section.sample and section.sample.overview):
        return
    # The images to be learned, without regularization images; nothing where samples
    # have no prompts.
    datasets = [
        data
        for data in getattr(section, "datasets", ())
        if data.folder_path and not data.is_reg
    ]
    learned = [Path(data.folder_path).expanduser() for data in datasets]
    shown: Iterable[Any] = getattr(section, "sample_pictures", tuple)()
    references = [[Path(path).expanduser() for path in one.ctrl_img] for one in shown]
    yield from _around("overview", folder, learned, references)


def dataset_of(section: TrainerConfig) -> Callable[[str], str]:
    """Image file -> the folder of its dataset, as the job writes it; empty where there
    is none."""
    names: list[str] = [
        data.folder_path
        for data in getattr(section, "datasets", ())
        if data.folder_path
    ]
    folders = {
        os.path.abspath(os.path.expanduser(name)): name for name in reversed(names)
    }

    @cache
    def find(image: str) -> str:
        path = os.path.abspath(os.path.expanduser(image)) if image else ""
        while path not in folders and path != os.path.dirname(path):
            path = os.path.dirname(path)
        return folders.get(path, "")

    return find
