"""What a dry run can say of a run before it starts: the model and its download, disk, time, and what a start would do
with what is in the run's folder. Asks what the run itself asks; imports no torch, writes nothing, opens no connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from toolkit.config.reading.process import JobContext
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.model_files import single_files
from toolkit.config.sections.train import UNTIL_THE_DATA_ENDS
from toolkit.files.run_files import about, amount
from toolkit.files.writing import readable_size
from toolkit.models.families import Download, UnknownFamilyError, download_of, family_for, model_bytes, title_of
from toolkit.system.nvidia import why_no_device_here

DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a JSON file of a run raises that is damaged."""


@dataclass(frozen=True)
class ModelOutlook:
    """The model of a run."""

    name: str
    family: str | None
    """Its `arch`; None: nothing on this disk says it."""

    title: str
    licence: str

    comes_later: bool
    """An earlier process of the job writes it."""

    bytes: int | None
    """Bytes of its weights here; None where they are not here."""

    download: Download | None
    files: tuple[str, ...] = ()
    """Lines that say which single files give parts of it, and how the model was told by one."""

    @classmethod
    def of(cls, model: ModelConfig, job: JobContext) -> ModelOutlook:
        """The model of a section. Raises UserError where its files are of another family, or cannot be read."""
        download = download_of(model, job)
        try:
            family = family_for(model)
        except UnknownFamilyError:
            return cls(model.name_or_path, None, "family not known", "", False, None, download)
        files = [f"{part.replace('_', ' ')}: {file}" for part, file in single_files(model).items()]
        comes_later = job.yet_to_come(model.folder())
        return cls(
            name=model.name_or_path,
            family=model.arch if comes_later else family.arch,
            title="" if comes_later else title_of(model, family),
            licence="" if comes_later else family.licence,
            comes_later=comes_later,
            bytes=None if comes_later or download else model_bytes(model),
            download=download,
            files=tuple(filter(None, (*files, model.file_note))),
        )

    def to_json(self) -> dict[str, Any]:
        download = None
        if found := self.download:
            download = {"bytes": found.bytes, "folder": str(found.folder), "free_bytes": found.free}
        said = {"title": self.title, "licence": self.licence, "files": list(self.files)}
        return {"name": self.name, "family": self.family, **said, "bytes": self.bytes, "download": download}

    def lines(self) -> Iterator[str]:
        """The lines of a plan."""
        here = ", written by an earlier process of the job" if self.comes_later else ""
        here = f", {readable_size(self.bytes)}" if self.bytes is not None else here
        facts = ", ".join(filter(None, (self.title, self.licence)))
        yield f"model: {self.name}{f' ({facts})' if facts else ''}{here}"
        yield from self.files
        if found := self.download:
            size = readable_size(found.bytes) if found.bytes is not None else "size unknown"
            yield f"download: {size}, to {found.folder} ({readable_size(found.free)} free)"

    def why_not_loaded(self, device: str, model: ModelConfig) -> Iterator[str]:
        """Why a run with this model does not start on this machine. device: as the job gives it."""
        size = model_bytes(model) if self.family and not self.comes_later else 0
        if message := why_no_device_here(device, size):
            yield message
        if self.download and (message := self.download.why_no_room(self.name)):
            yield message


class DiskOutlook(NamedTuple):
    """The disk that states and network files of a run take at most, in bytes."""

    needed_bytes: int
    there_bytes: int
    """Bytes of it that an earlier start has left in the folder."""

    free_bytes: int

    kept_bytes: int = 0
    """Bytes of the quantized model, which is kept in the cache of the `training_folder`; 0: none is."""


class TimeOutlook(NamedTuple):
    """The time that is left of a run."""

    steps: int
    step_s: float
    """Seconds per optimizer step."""

    seconds: float
    card: str
    """What it is the time of: a card with its article, or the device of an earlier run."""

    measured: bool
    """An earlier run on this machine took so long for a step; otherwise it is calculated."""

    parts: dict[str, float]
    """Part -> its seconds."""

    @property
    def _least_named(self) -> float:
        return max(60.0, NAMED * self.seconds)

    def line(self, until_the_data_ends: bool) -> str:
        """The line of a plan."""
        how = "measured here" if self.measured else "calculated"
        if until_the_data_ends:
            return f"time: about {self.step_s:.2g} s for each step on {self.card} ({how})"
        others = sorted(((seconds, part) for part, seconds in self.parts.items() if part != "steps"), reverse=True)
        named = [f"{amount(seconds)} of it for {part}" for seconds, part in others if seconds > self._least_named]
        rest = "".join(f", {each}" for each in named[:MOST_NAMED])
        return f"time: {about(self.seconds)} on {self.card} ({how}){rest}; a step takes {self.step_s:.2g} s"


NAMED, MOST_NAMED = 0.02, 2
"""Share of the time from which on a part of it is named, and how many are."""


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

    new_dataset_place: bool = False
    """The images of the run lie elsewhere, or have other names."""

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
        moved = "; the dataset has moved, its images are those of the run" if self.new_dataset_place else ""
        of_steps = "" if steps == UNTIL_THE_DATA_ENDS else f" of {steps:,}"
        words = {
            "new": "a new run" + ("; the old one is moved aside" if self.moves_aside else ""),
            "resumes": f"resumes at step {self.step:,}{of_steps}{moved}{compared}",
            "complete": f"complete at step {self.step:,}: nothing to do{moved}{compared}",
            "refused": "what is there stays as it is",
        }
        return f"folder: {self.folder}: {words[self.what]}"


@dataclass(frozen=True)
class Outlook:
    """All of it, as far as a process has it; see `toolkit.plan.run_plan.RunPlan.outlook`."""

    model: ModelOutlook | None = None
    steps: int = 0
    """Steps of the whole run."""

    disk: DiskOutlook | None = None
    time: TimeOutlook | None = None
    start: StartOutlook | None = None
    will_not_start: tuple[str, ...] = ()
    """Why the run does not start."""

    no_time: str = ""
    """Why no time is given, where there is something to say."""

    def to_json(self) -> dict[str, Any]:
        trains = {
            "disk": self.disk._asdict() if self.disk else None,
            "time": self.time._asdict() if self.time else None,
            "no_time": self.no_time or None,
            "start": self.start.to_json() if self.start else None,
        }
        return {
            **({"model": self.model.to_json()} if self.model else {}),
            **(trains if self.start else {}),
            "will_not_start": list(self.will_not_start),
        }

    def head(self) -> tuple[str, ...]:
        """Lines before the datasets."""
        return tuple(self.model.lines()) if self.model else ()

    def tail(self) -> tuple[str, ...]:
        """Lines at the end of a plan."""
        lines, begins = [], self.start is not None and self.start.what in ("new", "resumes")
        if begins and (disk := self.disk):
            there = f", of which {readable_size(disk.there_bytes)} are there" if disk.there_bytes else ""
            needed = f"disk: up to {readable_size(disk.needed_bytes)} of states and files"
            kept = f"; {readable_size(disk.kept_bytes)} of the quantized model" if disk.kept_bytes else ""
            line = f"{needed}{there}{kept} ({readable_size(disk.free_bytes)} free)"
            short = disk.needed_bytes - disk.there_bytes > disk.free_bytes
            lines = [f"warning: {line}: too little, saves are put off once the disk is full" if short else line]
        if begins and self.time:
            lines.append(self.time.line(self.steps == UNTIL_THE_DATA_ENDS))
        elif begins:
            lines.append("time: the first steps will tell" + (f"; {self.no_time}" if self.no_time else ""))
        if self.start:
            lines.append(self.start.line(self.steps))
        reasons = (reason.replace("\n", "\n    ") for reason in self.will_not_start)
        return (*lines, *(f"warning: this will not start: {reason}" for reason in reasons))
