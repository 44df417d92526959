"""What a dry run can say of a run before it starts: the model and its download, disk, time, and what a start would do
with what is in the run's folder. Asks what the run itself asks; imports no torch, writes nothing, opens no connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from toolkit.config.model import ModelConfig
from toolkit.config.process import JobContext
from toolkit.config.sections import TrainerConfig
from toolkit.config.train import UNTIL_THE_DATA_ENDS
from toolkit.data.fingerprint import DatasetHashes
from toolkit.data.run_plan import StepWork
from toolkit.errors import RunError, UserError
from toolkit.files.run_files import RECORD, duration, read_status
from toolkit.files.writing import free_space, readable_size
from toolkit.memory.flops import EFFICIENCY
from toolkit.models.families import Download, arch_of, download_of, family_for, model_bytes
from toolkit.system.nvidia import gpu_name, planned_refusal
from toolkit.train.checkpoint_store import (
    check_writable,
    checkpoint_dir,
    checkpoint_folders,
    read_checkpoint_json,
    step_of,
)
from toolkit.train.lock import read_lock, refusal
from toolkit.train.resumption import Corrections, Start, plan_start
from toolkit.train.run_reader import RunInfo, list_checkpoints, list_network_files, list_runs

DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a JSON file of a run raises that is damaged."""


@dataclass(frozen=True)
class ModelOutlook:
    """The model of a run."""

    name: str
    family: str
    """Its `arch`."""

    known: bool
    """Whether its files or the job say the family; else it is assumed until its files are here."""

    comes_later: bool
    """An earlier process of the job writes it."""

    bytes: int | None
    """Of its weights here; None where they are not here."""

    download: Download | None

    @classmethod
    def of(cls, model: ModelConfig, job: JobContext) -> ModelOutlook:
        """The model of a section. Raises UserError where its files are of another family, or cannot be read."""
        family = family_for(model)
        download = download_of(model, job)
        comes_later = job.yet_to_come(model.folder())
        return cls(
            name=model.name_or_path,
            family=family.arch,
            known=bool(model.arch or arch_of(model) or comes_later) or model.name_or_path in family.published,
            comes_later=comes_later,
            bytes=None if comes_later or download else model_bytes(model),
            download=download,
        )

    def to_json(self) -> dict[str, Any]:
        download = None
        if found := self.download:
            download = {"bytes": found.bytes, "folder": str(found.folder), "free_bytes": found.free}
        return {"name": self.name, "family": self.family, "bytes": self.bytes, "download": download}

    def lines(self) -> Iterator[str]:
        """The lines of a plan."""
        family = self.family if self.known else f"taken for {self.family} until its files are here"
        here = ", written by an earlier process of the job" if self.comes_later else ""
        here = f", {readable_size(self.bytes)}" if self.bytes is not None else here
        yield f"model: {self.name} ({family}){here}"
        if found := self.download:
            size = readable_size(found.bytes) if found.bytes is not None else "size unknown"
            yield f"download: {size}, to {found.folder} ({readable_size(found.free)} free)"

    def refusals(self, device: str, model: ModelConfig) -> Iterator[str]:
        """Why a run with this model does not start on this machine. device: as the job gives it."""
        if not self.comes_later and (message := planned_refusal(device, model_bytes(model))):
            yield message
        if self.download and (message := self.download.shortage(self.name)):
            yield message


@dataclass(frozen=True)
class DiskOutlook:
    """The disk that states and network files of a run take at most, in bytes."""

    needed: int
    there: int
    """Of it, what an earlier start has left in the folder."""

    free: int

    @classmethod
    def of(cls, folder: Path, needed: int) -> DiskOutlook:
        """needed: bytes of all states and files that are there at once."""
        states = sum(found.size for found in list_checkpoints(folder))
        files = sum(found.size for found in list_network_files(folder))
        return cls(needed, min(needed, states + files), free_space(folder))

    def to_json(self) -> dict[str, int]:
        return {"needed_bytes": self.needed, "there_bytes": self.there, "free_bytes": self.free}

    def line(self) -> str:
        there = f", of which {readable_size(self.there)} are there" if self.there else ""
        short = self.needed - self.there > self.free
        line = f"disk: up to {readable_size(self.needed)} of states and files{there} ({readable_size(self.free)} free)"
        return f"warning: {line}: too little, saves are put off once the disk is full" if short else line


@dataclass(frozen=True)
class TimeOutlook:
    """The time of the optimizer steps that are left, as a run with the same work per step took it, or calculated."""

    steps: int
    step_s: float
    """Seconds per optimizer step."""

    measured_in: Path | None
    """The folder of that run."""

    calculated_for: str = ""
    """Without one: the name of the GPU that the operations of a step are calculated for."""

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "step_s": self.step_s,
            "seconds": round(self.steps * self.step_s, 1),
            "measured_in": str(self.measured_in) if self.measured_in else None,
            "calculated_for": self.calculated_for or None,
        }

    def line(self) -> str:
        reached = f"{self.calculated_for} at {EFFICIENCY:.0%} of its peak"
        source = f"as {self.measured_in} took" if self.measured_in else f"calculated for {reached}, not measured"
        return (
            f"time: about {duration(self.steps * self.step_s)} for {self.steps:,} steps of {self.step_s:.3g} s, "
            f"{source}; loading, encoding, saving and sampling come on top"
        )


Beginning = Literal["new", "resumes", "complete", "refused"]


@dataclass(frozen=True)
class StartOutlook:
    """What a start of the job does with what is in the run's folder."""

    folder: Path
    what: Beginning
    step: int = 0
    """Optimizer steps that are done."""

    moves_aside: bool = False
    """An old run is moved aside first."""

    new_place: bool = False
    """The model has another name than before: the run compares its files first."""

    reason: str = ""
    """Why it is refused."""

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "what": self.what,
            "step": self.step,
            "moves_aside": self.moves_aside,
            "reason": self.reason or None,
        }

    def line(self, steps: int) -> str:
        """steps: of the whole run."""
        compared = "; the files of the model, which has another name now, are compared first" if self.new_place else ""
        of_steps = "" if steps == UNTIL_THE_DATA_ENDS else f" of {steps:,}"
        words = {
            "new": "a new run" + ("; the old one is moved aside" if self.moves_aside else ""),
            "resumes": f"resumes at step {self.step:,}{of_steps}{compared}",
            "complete": f"complete at step {self.step:,}: nothing to do{compared}",
            "refused": "what is there stays as it is",
        }
        return f"folder: {self.folder}: {words[self.what]}"


@dataclass(frozen=True)
class Outlook:
    """All of it, as far as a process has it; see `toolkit.data.run_plan.RunPlan.outlook`."""

    model: ModelOutlook | None = None
    steps: int = 0
    """Of the whole run."""

    disk: DiskOutlook | None = None
    time: TimeOutlook | None = None
    start: StartOutlook | None = None
    refusals: tuple[str, ...] = ()
    """Why the run does not start."""

    def to_json(self) -> dict[str, Any]:
        trains = {
            "disk": self.disk.to_json() if self.disk else None,
            "time": self.time.to_json() if self.time else None,
            "start": self.start.to_json() if self.start else None,
        }
        return {
            **({"model": self.model.to_json()} if self.model else {}),
            **(trains if self.start else {}),
            "will_not_start": list(self.refusals),
        }

    def head(self) -> tuple[str, ...]:
        """Lines before the datasets."""
        return tuple(self.model.lines()) if self.model else ()

    def tail(self) -> tuple[str, ...]:
        """Lines at the end of a plan."""
        lines = []
        if self.start and self.start.what in ("new", "resumes"):
            lines = [self.disk.line()] if self.disk else []
            why = "no run with this model and these sizes was measured in the training folder"
            if self.steps == UNTIL_THE_DATA_ENDS:
                why = "nor is the number of steps"
            unknown = f"time: not known, {why}"
            lines.append(self.time.line() if self.time else unknown)
        if self.start:
            lines.append(self.start.line(self.steps))
        reasons = (reason.replace("\n", "\n    ") for reason in self.refusals)
        return (*lines, *(f"warning: this will not start: {reason}" for reason in reasons))


def run_outlook(
    section: TrainerConfig,
    job: JobContext,
    steps: int,
    found: Callable[[], DatasetHashes],
    corrections: Corrections = lambda revision: [],
    needed_bytes: int | None = None,
    model: ModelConfig | None = None,
    refusals: tuple[str, ...] = (),
    step_work: StepWork | None = None,
) -> Outlook:
    """The outlook of a trainer's section.

    steps: of the whole run. found, corrections: as of `plan_start`. needed_bytes: of all states and files that are on
    the disk at once. refusals: reasons not to start that the caller has found. step_work: for a run that no other was
    measured for; None: not known.
    """
    folder = section.run_folder(job)
    start = _start(folder, section, job, steps, found, corrections)
    models = ModelOutlook.of(model, job) if model else None
    if start.what == "complete":  # a run that has nothing to do needs nothing
        refusals = ()
    else:
        refusals = (
            *((start.reason,) if start.reason else ()),
            *(models.refusals(section.device, model) if models and model else ()),
            *refusals,
        )
    step_s = _measured(section, folder) or _calculated(section.device, step_work)
    return Outlook(
        model=models,
        steps=steps,
        disk=None if needed_bytes is None else DiskOutlook.of(folder, needed_bytes),
        time=TimeOutlook(max(0, steps - start.step), *step_s) if step_s and steps != UNTIL_THE_DATA_ENDS else None,
        start=start,
        refusals=refusals,
    )


def _start(
    folder: Path,
    section: TrainerConfig,
    job: JobContext,
    steps: int,
    found: Callable[[], DatasetHashes],
    corrections: Corrections,
) -> StartOutlook:
    """As the run decides it, but for the hashes of a state's files: only their sizes are compared."""
    lock = read_lock(folder)
    if lock.held:
        return StartOutlook(folder, "refused", reason=refusal(folder, lock.owner))
    try:
        check_writable(checkpoint_dir(folder))
        start = (
            Start(None, moves_aside=True)
            if job.begins_anew
            else plan_start(folder, section, steps, found, job.restart, job.allow_change, corrections, by_hash=False)
        )
    except (UserError, RunError) as error:
        return StartOutlook(folder, "refused", reason=str(error))
    except DAMAGED as error:
        return StartOutlook(folder, "refused", reason=f"{folder}: a state cannot be read ({error}).")
    if start.complete_at is not None:
        return StartOutlook(folder, "complete", start.complete_at, new_place=start.new_place)
    if start.checkpoint:
        return StartOutlook(folder, "resumes", step_of(start.checkpoint), new_place=start.new_place)
    return StartOutlook(folder, "new", moves_aside=start.moves_aside and folder.is_dir() and any(folder.iterdir()))


# ------------------------------------------------------------ time


def _measured(section: TrainerConfig, folder: Path) -> tuple[float, Path] | None:
    """Seconds per step, and the folder of the run that took them: this one, else the latest beside it with the same
    work per step."""
    wanted = _work(section.recorded_settings())

    def latest_first(run: RunInfo) -> tuple[bool, datetime]:
        return run.folder == folder, run.updated or datetime.min.replace(tzinfo=UTC)

    runs = list_runs(Path(section.training_folder).expanduser())
    for run in sorted(runs, key=latest_first, reverse=True):
        if run.step_s and _work(_recorded_settings(run.folder)) == wanted:
            return run.step_s, run.folder
    return None


def _calculated(device: str, work: StepWork | None) -> tuple[float, None, str] | None:
    """Seconds per step on the GPU that is there, and its name; None where one of both is not known."""
    name = gpu_name(device) if work else ""
    seconds = work.seconds(name) if work else None
    return (seconds, None, name) if seconds else None


def _recorded_settings(folder: Path) -> Mapping[str, Any]:
    """The settings of a run, from its newest state or from run.json; empty where neither has them."""
    try:
        states = checkpoint_folders(checkpoint_dir(folder))
        document = read_checkpoint_json(states[-1]) if states else read_status(folder)[RECORD]
        return dict(document["settings"])
    except DAMAGED:
        return {}


_OF_A_STEP = (
    "batch_size", "gradient_accumulation", "dtype", "optimizer", "gradient_checkpointing", "compile", "parallel",
    "ema_config",
)  # fmt: skip
"""Keys of `train` that decide how long a step takes."""


def _work(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """What decides the time of a step on one machine; of a section as plain data."""
    train, datasets = settings.get("train") or {}, settings.get("datasets") or []
    return {
        "device": settings.get("device"),
        "model": settings.get("model"),
        "network": {key: (settings.get("network") or {}).get(key) for key in ("type", "linear")},
        "images": [
            [data.get("resolution"), len(data.get("control_path") or ()), bool(data.get("url"))] for data in datasets
        ],
        "train": {key: train.get(key) for key in _OF_A_STEP},
        **{key: settings.get(key) for key in ("losses", "discriminator", "autoencoder")},
    }
