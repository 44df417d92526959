"""How a job starts in its folder: whether its run is complete, which checkpoint it
resumes from (the newest good one, a given one, or none), which settings may have
changed, and what happens to the run's files. Nothing is ever deleted for it. Imports no
torch before a checkpoint is loaded, so that a dry run asks the same.

`jobs.process.trainer` calls `plan_start` and then `ResumePlan`; `toolkit.plan.planning`
asks the same for a dry run.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from toolkit.config.reading.process import ProcessConfig
from toolkit.config.sections.train import (
    CHECK_EVERY,
    SCHEDULES_WITHOUT_LENGTH,
    UNTIL_THE_DATA_ENDS,
    StopWhenConfig,
)
from toolkit.config.sections.trainer import TrainerConfig
from toolkit.data.batches.epoch_order import epoch_cursor
from toolkit.data.scan.fingerprint import DatasetHashes, compare, digest_of
from toolkit.data.scan.moved import PLACES, RunOrder, run_order
from toolkit.errors import RunError, UserError
from toolkit.files.redact import redact_json
from toolkit.files.run_files import (
    DATASET_PREFIX,
    FINISHED,
    LAYERS,
    RECORD,
    SAMPLE_FILE,
    SAMPLES,
    SUPERSEDED,
    best_stem,
    final_files,
    read_status,
    step_files,
    step_in,
    step_stem,
)
from toolkit.files.writing import read_regular, short, unused_path, write_json
from toolkit.models.vae_files import VAE_ENCODER
from toolkit.train.checkpoint_store import (
    checkpoint_dir,
    checkpoint_folders,
    is_state_name,
    latest_checkpoint,
    read_checkpoint_json,
    reading_state,
    step_of,
    verify,
)
from toolkit.train.config_diff import REVISION, ConfigChange, diff_configs
from toolkit.train.lock import FILE as LOCK_FILE
from toolkit.train.paired import CONFIDENCE
from toolkit.train.run_reader import list_network_files

if TYPE_CHECKING:
    from toolkit.train.run import Run

logger = logging.getLogger(__name__)


def find_checkpoint(
    folder: Path, resume: str | int, restart: bool, by_hash: bool = True
) -> tuple[Path | None, bool]:
    """The checkpoint to resume from, or None to start from scratch; and whether an old
    run is moved aside first.

    resume: `auto` (the newest good one), `never`, a step number, or the path of a
    checkpoint. restart: where no checkpoint is good, start from scratch instead of
    refusing. by_hash: as of `verify`. Raises RunError when the given checkpoint is
    missing or damaged, or when checkpoints exist and none is good.
    """
    root = checkpoint_dir(folder)
    if resume == "never":
        return None, True
    if resume != "auto":
        path = (
            root / f"step_{resume:09d}"
            if isinstance(resume, int)
            else Path(resume).expanduser()
        )
        if not is_state_name(path.name):
            problem: str | None = "its name has to be step_ and nine digits"
        else:
            problem = verify(path, by_hash) if path.is_dir() else "it does not exist"
        if problem:
            available = (
                ", ".join(str(step_of(p)) for p in checkpoint_folders(root)) or "none"
            )
            raise RunError(
                f"resume: {short(path)} cannot be used: {problem}. Steps with a state here: {available}."
            )
        return path, False
    newest = latest_checkpoint(root, by_hash)
    if newest is None and checkpoint_folders(root):
        if not restart:
            raise RunError(
                f"{short(root)}: no valid checkpoint found, all failed verification. To start over, run the job again "
                "with --restart: it moves the old run aside and overwrites nothing."
            )
        return None, True
    return newest, False


def archive_run(folder: Path) -> None:
    """Moves the files of a run to `<folder>.old-<n>`; the folder itself stays, with its
    lock, and so do runs of other processes of its job in it."""
    entries = (
        [path for path in folder.iterdir() if path.name != LOCK_FILE]
        if folder.is_dir()
        else []
    )
    entries = [path for path in entries if not (path / LOCK_FILE).is_file()]
    if not entries:
        return
    target = unused_path(folder.parent, f"{folder.name}.old-")
    _move(entries, target)
    logger.info(f"moved the old run to {short(target)}")


def begins_again(folder: Path, lora: bool) -> str:
    """What happens to a run without a checkpoint that has written weights, and the way
    on from them; empty where the folder has none. lora: whether they are an adapter's.
    """
    files = [file for file in list_network_files(folder) if file.kind != "best"]
    if not files:
        return ""
    plural = "s are" if len(files) > 1 else " is"
    said = (
        f"the run in it has no checkpoint, so it begins again at step 1, and its "
        f"{len(files)} file{plural} moved aside"
    )
    if not lora:
        return said
    return (
        f"{said}. To go on from its LoRA instead, give the job another name, and write "
        f"network.pretrained_lora_path: {files[-1].path}"
    )


def archive_later_files(folder: Path, name: str, step: int | None) -> None:
    """Moves checkpoints, step files and samples of steps after `step` to
    superseded/<n>, so that no step appears twice.

    The final files and the best one count by the step they were written at. step: None
    for a run from scratch.
    """
    step = -1 if step is None else step
    samples = folder / SAMPLES
    pictures = sorted((*samples.glob("*"), *(samples / LAYERS).glob("*")))
    moved = [
        *(path for path in final_files(folder, name) if step_in(path) > step),
        # A best file without a step stays: unlike the final one it is not rewritten by
        # every run.
        *(
            path
            for path in final_files(folder, best_stem(name))
            if step < step_in(path) < math.inf
        ),
        *(
            path
            for path in checkpoint_folders(checkpoint_dir(folder))
            if step_of(path) > step
        ),
        *(
            path
            for number, paths in step_files(folder, name).items()
            if number > step
            for path in paths
        ),
        *(
            path
            for path in pictures
            if (match := SAMPLE_FILE.fullmatch(path.name)) and int(match["step"]) > step
        ),
    ]
    if moved:
        target = unused_path(folder / SUPERSEDED, "")
        _move(moved, target)
        what = f"of steps after {step}" if step >= 0 else "of an earlier run"
        plural = "" if len(moved) == 1 else "s"
        logger.info(f"moved {len(moved)} file{plural} {what} to {short(target)}")


def keep_end(folder: Path, name: str) -> None:
    """Gives the final files of a run that goes on the names of their step, unless there
    is a file of it: the new end gets their names."""
    for path in final_files(folder, name):
        step = int(step_in(path))
        kept = path.with_name(step_stem(name, step) + path.name.removeprefix(name))
        if not kept.exists():
            path.rename(kept)
            logger.info(f"{short(path)}: the end of step {step} is kept as {kept.name}")


def _move(paths: Iterable[Path], target: Path) -> None:
    target.mkdir(parents=True)
    for path in paths:
        path.rename(target / path.name)


@dataclass(frozen=True)
class Start:
    """How a job starts, given the files in its folder.

    >>> Start(None, moves_aside=True).new_place
    False
    """

    checkpoint: Path | None
    """The run resumes from it; None: it begins from scratch."""

    moves_aside: bool = False
    """The files of an old run are moved aside first."""

    complete_at: int | None = None
    """The steps that are done, where nothing is left to do: of the same job, on the
    same dataset."""

    document: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint's record of its job; for a complete run without states, the record
    in run.json."""

    changes: tuple[ConfigChange, ...] = ()
    """The differences to that job."""

    new_dataset_place: bool = False
    """The job names its images otherwise than the run did; they are the same."""

    @property
    def new_place(self) -> bool:
        """The model has another name than in the job that wrote the checkpoint: whether
        it is the same one, its files say (`ResumePlan.check_base`)."""
        return any(change.kind == "place" for change in self.changes)


def plan_start(
    folder: Path,
    section: TrainerConfig,
    steps: int,
    read_hashes: Callable[[], DatasetHashes],
    restart: bool,
    allow_change: bool,
    by_hash: bool = True,
) -> Start:
    """Plans the start of the job in `folder`; it changes nothing there.

    steps: optimizer steps of the whole run. read_hashes: returns the hashes of the
    dataset; called where there is a run to compare with. restart: a run that is
    complete, or cannot be resumed, is moved aside. by_hash: whether checkpoints are
    verified by their content. Raises RunError as `find_checkpoint`, and for a run of a version that
    computes something else; UserError where the job differs from the one that wrote the
    checkpoint in what cannot change, or without `allow_change` in what changes the
    result; of a complete run the dataset counts as such.
    """
    checkpoint, aside = find_checkpoint(folder, section.resume, restart, by_hash)
    if aside:
        return Start(None, moves_aside=True)
    read_hashes = cache(read_hashes)  # each call looks at every file
    try:
        with reading_state(checkpoint or folder):
            complete_at = _complete_at(folder, checkpoint, section, steps)
            document = _record_of(folder, checkpoint)
            if document is None or (checkpoint is None and complete_at is None):
                return Start(None, complete_at=complete_at)
            if document.get("revision") != REVISION:
                raise RunError(
                    f"{checkpoint or folder} was written by an earlier version of this "
                    f"program. To keep both runs, {_ELSE}"
                )
            folder_of_run = checkpoint.parent.parent if checkpoint else folder
            is_compared = complete_at is not None or _has_moved(document, section)
            order = (
                _order_of_run(folder_of_run, document, section, read_hashes())
                if is_compared
                else None
            )
            changes = tuple(_differences(document, section, order))
            trained_on = str(document["dataset"])
            document = dict(document)
            for key in ("base", "compiled"):
                if document.get(key):
                    document[key] = dict(document[key])
        _refuse_changes(
            short(checkpoint or folder),
            changes,
            section,
            allow_change,
            bool(checkpoint and document.get("base")),
        )
        if complete_at is not None and restart:
            return Start(None, moves_aside=True)
        if (
            complete_at is not None
            and not allow_change
            and order is None
            and trained_on != digest_of(read_hashes())
        ):
            change = _change(_fingerprint_file(folder, trained_on), read_hashes())
            raise UserError(
                f"{short(folder)} holds a run that is complete at step {complete_at}, and the dataset is another one: "
                f"{change}. To train on this one, {_ELSE} --allow-change leaves the run as it is."
            )
    except (UserError, RunError):
        if not restart:
            raise
        return Start(None, moves_aside=True)
    moved = order is not None and trained_on != digest_of(read_hashes())
    return Start(
        checkpoint, False, complete_at, document, changes, new_dataset_place=moved
    )


def _complete_at(
    folder: Path, checkpoint: Path | None, section: TrainerConfig, steps: int
) -> int | None:
    """The steps that are done, where these are all or `stop_when` would end the run at
    this step again."""
    status = read_status(folder)
    if status.get("status") != FINISHED:
        return None
    name = str(status.get("name") or folder.name)
    is_gone = not final_files(folder, name)
    if checkpoint is None:
        # Without states only run.json says it. A run that ended early has as many steps
        # planned.
        step = int(status["step"])
        planned = status["steps"]
        if is_gone and section.save.states == "never":
            raise UserError(
                f"{short(folder)} holds a run that is complete at step {step}: {name}.safetensors is not there any "
                "more, and no state was kept to write it from. --restart trains again."
            )
        if section.save.states == "never" and (planned is None or planned >= steps):
            return step
        return None
    if is_gone:
        # the files of the end are written again, from the state of the last step
        return None
    step = step_of(checkpoint)
    state = read_checkpoint_json(checkpoint)["state"]
    passed = (
        steps == UNTIL_THE_DATA_ENDS and state["epochs_done"] >= section.train.epochs
    )
    if step >= steps or passed or stop_reason(section.stop_when, step, state["extra"]):
        return step
    return None


STOP_KEY = "stop_when"
"""The entry of `TrainState.extra` with the last values of the metric, or the forecast
of the last validation."""

FORECAST = "forecast"
"""In that entry: what a `Forecast` has; empty before there is one."""


def stop_reason(
    settings: StopWhenConfig | None, step: int, extra: Mapping[str, Any]
) -> str | None:
    """Why `stop_when` settings end a run with this `TrainState` step and extra; None
    where they do not.

    They never end it at step 0. Without `below` the last forecast decides. `below` is
    compared only at multiples of CHECK_EVERY, with the mean of the last `smooth` values
    of the same metric.

    >>> stop_reason(None, step=100, extra={}) is None
    True
    """
    if settings is None or step == 0:
        return None
    saved = extra.get(STOP_KEY, {})
    if settings.below is None:
        forecast = saved.get(FORECAST)
        if not forecast or forecast["gain"] > forecast["resolvable"]:
            return None
        return (
            f"stop_when: at {CONFIDENCE:.0%} confidence no later step will be better than step "
            f"{forecast['best']} by {forecast['resolvable']:.3g}, the least that these images resolve"
        )
    if step % CHECK_EVERY:
        return None
    values = saved.get("values", [])[-settings.smooth :]
    if saved.get("metric") != settings.metric or len(values) < settings.smooth:
        return None
    mean = fmean(values)
    if mean >= settings.below:
        return None
    return f"stop_when: the mean {settings.metric} of {len(values)}, {mean:.6g}, is below {settings.below:g}"


@dataclass(frozen=True)
class ResumePlan:
    """How a run begins, after all checks: from the checkpoint `state`, or from scratch
    where that is None.

    Example::

        start = plan_start(folder, section, steps, read_hashes, False, False)
        resumption = ResumePlan.of(start, section, read_hashes())
        resumption.check_base(base_hashes(section.model))
        resumption.apply(run)
    """

    state: Path | None
    record: dict[str, Any]
    """Metadata of every checkpoint of this run: the job's settings, the hash of its
    dataset, the program's revision."""

    found: DatasetHashes
    """Hashes of the dataset, in the order of the run."""

    order: RunOrder | None = None
    """The order in which the run uses the images, where a scan of the job gives another
    one."""

    new_optimizer: bool = False
    """The job changed the optimizer: the saved optimizer state is not loaded."""

    new_dataset: bool = False
    base: Mapping[str, str] | None = None
    """The checkpoint's record of `check_base`; None: it has none."""

    compiled: Mapping[str, bool] | None = None
    """The checkpoint's record of `record_compiled`; None: it has none."""

    spelling: str | None = None
    """The checkpoint's record of `record_spelling`; None: it has none."""

    threads: int | None = None
    """Threads of the CPU with which it was computed, when it was saved; None: it does
    not say."""

    @classmethod
    def of(
        cls, start: Start, section: ProcessConfig, hashes: DatasetHashes
    ) -> ResumePlan:
        """How the run of a section begins. hashes: of the dataset. Logs the changes of
        the job."""
        settings = _settings(section)
        record = {
            "settings": settings,
            "dataset": digest_of(hashes),
            "revision": REVISION,
        }
        if start.checkpoint is None:
            return cls(None, record, hashes)
        changed = {change.key for change in start.changes}
        for change in start.changes:
            logger.info(f"changed since the last run: {change}")
        folder_of_run = start.checkpoint.parent.parent
        order = _order_of_run(folder_of_run, start.document, section, hashes)
        is_same = start.document["dataset"] == record["dataset"]
        if order is not None and not is_same:
            logger.info(
                f"the dataset has moved: its {len(order.names):,} images are those of the run"
            )
        if order is not None:
            hashes = {name: hashes[name] for name in order.names}
            settings["datasets"] = order.as_begun(settings["datasets"])
        return cls(
            start.checkpoint,
            record,
            hashes,
            order=None if order is None or order.is_as_found else order,
            new_optimizer="train.optimizer" in changed,
            new_dataset=order is None and not is_same,
            base=start.document.get("base"),
            compiled=start.document.get("compiled"),
            spelling=start.document.get("spelling"),
            threads=start.document.get("threads"),
        )

    def check_base(self, hashes: Mapping[str, str]) -> None:
        """Records what the run trains on: the hash of each part of the base model and
        of the files that change it.

        Raises UserError when the checkpoint was trained on something else.
        """
        self.record["base"] = dict(hashes)
        if self.base is None:
            return
        parts = self.base.keys() | hashes.keys()
        # A VAE is its encoder. A checkpoint of an earlier version has the hash of the
        # whole VAE alone.
        parts -= {"vae"} if VAE_ENCODER in self.base else {VAE_ENCODER}
        differing = [
            part for part in sorted(parts) if self.base.get(part) != hashes.get(part)
        ]
        if differing:
            verb = "differs" if len(differing) == 1 else "differ"
            names = ", ".join(part.replace("_", " ") for part in differing)
            raise UserError(
                f"{self.state} was trained on another base model: {names} {verb}. "
                "Restore the model, or give the job another name."
            )

    @property
    def ran_compiled(self) -> bool:
        """Whether the checkpoint is one of a run with compiled blocks."""
        return self.compiled is not None and all(self.compiled.values())

    def record_compiled(self, compiled: Mapping[str, bool]) -> None:
        """Records whether the blocks are compiled, as it stands at each save; logs what
        differs from the checkpoint."""
        self.record["compiled"] = compiled
        if self.compiled is not None and self.compiled != compiled:
            before = _how_they_ran(self.compiled)
            now = _how_they_ran(compiled)
            logger.info(
                f"changed since the last run: blocks that ran {before} run {now}: results differ by rounding"
            )

    def report_threads(self, threads: int) -> None:
        """Logs that a run on the CPU is computed with another number of threads than
        the checkpoint was."""
        if self.threads not in (None, threads):
            logger.info(
                f"changed since the last run: threads of the CPU: {self.threads} -> "
                f"{threads}. Results differ by rounding"
            )

    def record_spelling(self, of_new_runs: str, before_it_was_recorded: str) -> str:
        """The name of the spelling of the run's files, recorded for its checkpoints. A
        run keeps the one it began with: its files are compared, averaged and loaded
        side by side."""
        spelling = of_new_runs
        if self.state is not None:
            spelling = self.spelling or before_it_was_recorded
        self.record["spelling"] = spelling
        return spelling

    def apply(self, run: Run) -> None:
        """Loads the checkpoint into the run, moves files of later steps aside, and
        saves the dataset's hashes.

        Only rank 0 touches files.
        """
        if self.state is not None:
            # Here, because it imports torch.
            from toolkit.train.checkpoint_state import load_state

            with reading_state(self.state):
                load_state(self.state, run, fresh_optimizer=self.new_optimizer)
        if run.process_group.is_main_process:
            if self.state is None and (said := begins_again(run.folder, lora=False)):
                logger.warning(f"{short(run.folder)}: {said}")
            archive_later_files(
                run.folder, run.name, run.state.step if self.state else None
            )
            if run.state.step < run.steps:
                keep_end(run.folder, run.name)
        if self.state is not None:
            logger.info(f"resuming from {short(self.state)}")
            if self.new_dataset:
                self._begin_next_epoch(self.state, run)
        if run.process_group.is_main_process:
            write_json(
                _fingerprint_file(run.folder, self.record["dataset"]), self.found
            )

    def _begin_next_epoch(self, checkpoint: Path, run: Run) -> None:
        """A changed dataset has another epoch order: it begins with a complete
        epoch."""
        old = _fingerprint_file(run.folder, read_checkpoint_json(checkpoint)["dataset"])
        change = _change(old, self.found) or "its images are in another order"
        logger.info(
            f"the dataset has changed: {change}. The next epoch begins with it."
        )
        state = run.state
        if state.cursor and state.cursor.get("batch"):  # a stream sees to it itself
            state.epoch += 1
            state.cursor = epoch_cursor(state.epoch, 0)
            state.epochs_done = state.epochs_before = state.epoch


def _how_they_ran(compiled: Mapping[str, bool]) -> str:
    return "compiled" if all(compiled.values()) else "uncompiled"


def _settings(section: ProcessConfig) -> dict[str, Any]:
    """The settings that a checkpoint records: redacted, so those compared with them are
    too."""
    recorded: dict[str, Any] = redact_json(section.recorded_settings(), by_key=True)
    return recorded


def _differences(
    document: Mapping[str, Any], section: ProcessConfig, order: RunOrder | None
) -> list[ConfigChange]:
    """The differences between a section and the job that wrote a record. order: of the
    same images, whose places then do not count."""
    given = section.model_dump(mode="json", exclude_unset=True)
    recorded = redact_json(document["settings"], by_key=True)
    wanted = _settings(section)
    for settings in (recorded, wanted):
        if settings.get("training_seed") == 0:  # a random seed: that of the checkpoint
            settings["training_seed"] = document.get("seed", 0)
    if order is not None:
        recorded["datasets"] = order.settings(recorded["datasets"], wanted["datasets"])
    return diff_configs(type(section), recorded, wanted, given)


def trained_images(folder: Path, resume: str | int = "auto") -> DatasetHashes:
    """Hashes of the images that the run in `folder` has trained on, as the checkpoint
    to resume from says; empty for a run that has not begun.

    resume: as of `find_checkpoint`.
    """
    try:
        checkpoint, _ = find_checkpoint(folder, resume, restart=True, by_hash=False)
        document = _record_of(folder, checkpoint)
        if not document:
            return {}
        hashes = _recorded_hashes(
            checkpoint.parent.parent if checkpoint else folder, document
        )
        return hashes if isinstance(hashes, dict) else {}
    except (RunError, OSError, ValueError, KeyError):
        # `plan_start` reports the fault of the run.
        return {}


def _record_of(folder: Path, checkpoint: Path | None) -> dict[str, Any] | None:
    """The record of a job in its checkpoint, or in run.json where there is none."""
    if checkpoint:
        return read_checkpoint_json(checkpoint)
    return read_status(folder).get(RECORD)


def _recorded_hashes(folder: Path, document: Mapping[str, Any]) -> Any:
    """The hashes that a run has written of its dataset. Raises the errors of reading
    JSON, and KeyError for a record without one."""
    return json.loads(read_regular(_fingerprint_file(folder, str(document["dataset"]))))


def _order_of_run(
    folder: Path,
    document: Mapping[str, Any],
    section: ProcessConfig,
    hashes: DatasetHashes,
) -> RunOrder | None:
    """The order in which a run began; None where the job has other images, or the run's
    record of them is lost."""
    before = _entries(document.get("settings", {}))
    given = _given_entries(section)
    if before is None or given is None:
        return None
    try:
        return run_order(_recorded_hashes(folder, document), hashes, before, given)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return None


def _has_moved(document: Mapping[str, Any], section: ProcessConfig) -> bool:
    """Whether a job names other places of its images than the one that wrote a
    record."""
    before = _entries(document.get("settings", {}))
    given = _given_entries(section)
    return (
        before is not None and given is not None and _places(before) != _places(given)
    )


def _given_entries(section: ProcessConfig) -> list[dict[str, Any]] | None:
    """`_entries` of a section. Not of its recorded settings, for which LoRA files are
    hashed."""
    return _entries(
        redact_json(section.model_dump(mode="json", include={"datasets"}), by_key=True)
    )


def _entries(settings: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The `datasets` of a job, where they are folders. Streams are compared by the
    names of their shards."""
    entries = settings.get("datasets")
    if (
        not isinstance(entries, list)
        or not entries
        or any(entry.get("url") for entry in entries)
    ):
        return None
    return entries


def _places(entries: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    return [[entry.get(key) for key in PLACES] for entry in entries]


_LENGTH = ("train.steps", "train.epochs")
_ANOTHER_JOB = 6
"""With this many differing settings the message says that the folder belongs to another
job; with fewer it lists the settings."""

_ELSE = "give the job another name, or add --restart to move the old run aside and start over."


def _refuse_changes(
    state: str,
    changes: Iterable[ConfigChange],
    section: TrainerConfig,
    allow_change: bool,
    knows_base: bool,
) -> None:
    """Raises UserError for changes that a resume cannot take; it begins with the
    changed keys. knows_base: the files of the model are compared, so that it may lie
    elsewhere."""
    by_kind: dict[str, list[ConfigChange]] = {}
    for change in changes:
        kind = (
            "impossible" if change.kind == "place" and not knows_base else change.kind
        )
        by_kind.setdefault(kind, []).append(change)
    impossible = by_kind.get("impossible", [])
    changing = by_kind.get("changes the result", [])
    differing = impossible + changing
    if len(differing) >= _ANOTHER_JOB and not (allow_change and not impossible):
        raise UserError(
            f"{state} is of another job of this name: {len(differing)} settings differ.\n"
            f"{_indented(differing)}To keep both runs, {_ELSE}"
        )
    if impossible:
        raise UserError(
            f"{_lines(impossible)}this cannot change: {state} was written with different settings. "
            f"Restore them, {_ELSE}"
        )
    if changing and not allow_change:
        raise UserError(f"{_lines(changing)}{_why(changing, state, section)}")


def _indented(changes: Sequence[ConfigChange]) -> str:
    shown = "".join(f"  {change}\n" for change in changes[:_ANOTHER_JOB])
    more = len(changes) - _ANOTHER_JOB
    if more > 0:
        shown += f"  and {more} more\n"
    return shown


def _lines(changes: Sequence[ConfigChange]) -> str:
    """Each change on its line, the first at the beginning."""
    return "  ".join(f"{change}\n" for change in changes)


def _why(changes: Sequence[ConfigChange], state: str, section: TrainerConfig) -> str:
    """Why these change the result, and what can be done."""
    if all(change.key in _LENGTH for change in changes):
        name = section.train.lr_scheduler
        ends = (
            "its warm-up is a share of them"
            if name in SCHEDULES_WITHOUT_LENGTH
            else f"'{name}' ends with the last one"
        )
        return (
            f"the learning rate of each step depends on the number of steps: {ends}. Two ways: add --allow-change to "
            f"continue {state} with the rates of the new number; or train all steps again: {_ELSE}"
        )
    restore = "" if any(change.has_left for change in changes) else "restore them, "
    return (
        f"this changes the result, and {state} was trained with other settings: add --allow-change to resume with the "
        f"new values, {restore}{_ELSE}"
    )


def _change(old: Path, hashes: DatasetHashes) -> str:
    try:
        return str(compare(json.loads(read_regular(old)), redact_json(hashes)))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return f"{old} is missing or damaged, so it is not known in what"


def _fingerprint_file(folder: Path, digest: str) -> Path:
    return folder / f"{DATASET_PREFIX}{digest[:12]}.json"
