"""What a dry run knows before a run starts: the model and its download, disk, time, and
whether the run is a new one.

Each record has the lines of the plan and its JSON. `planning.run_outlook` and the
planners of other processes make them, from the same questions that a run asks. Imports
no torch, writes nothing, opens no connection.
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
from toolkit.models.families import (
    Download,
    UnknownFamilyError,
    download_of,
    family_for,
    model_bytes,
    title_of,
)
from toolkit.system.nvidia import why_no_device_here

DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a JSON file of a run raises that is damaged."""


@dataclass(frozen=True)
class ModelOutlook:
    """The model of a run.

    Example::

        outlook = ModelOutlook.of(section.model, JobContext("my_char"))
        print("\n".join(outlook.lines()))
    """

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
    """Lines that say which single files give parts of it, and how the model was told by
    one."""

    @classmethod
    def of(cls, model: ModelConfig, job: JobContext) -> ModelOutlook:
        """The model of a section. Raises UserError where its files are of another
        family, or cannot be read."""
        download = download_of(model, job)
        try:
            family = family_for(model)
        except UnknownFamilyError:
            return cls(
                model.name_or_path, None, "family not known", "", False, None, download
            )
        files = [
            f"{part.replace('_', ' ')}: {file}"
            for part, file in single_files(model).items()
        ]
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
        return {
            "name": self.name,
            "family": self.family,
            "title": self.title,
            "licence": self.licence,
            "files": list(self.files),
            "bytes": self.bytes,
            "download": _download_json(self.download) if self.download else None,
        }

    def lines(self) -> Iterator[str]:
        """The lines of a plan: the model with its licence and size, its single files,
        and the download if any."""
        line = f"model: {self.name}"
        if facts := ", ".join(filter(None, (self.title, self.licence))):
            line += f" ({facts})"
        if self.bytes is not None:
            line += f", {readable_size(self.bytes)}"
        elif self.comes_later:
            line += ", written by an earlier process of the job"
        yield line
        yield from self.files
        if self.download:
            yield _download_line(self.download)

    def why_not_loaded(self, device: str, model: ModelConfig) -> Iterator[str]:
        """Why a run with this model does not start on this machine: the device, or the
        room for the download. Nothing where it may start. device: as the job gives it.
        """
        size = model_bytes(model) if self.family and not self.comes_later else 0
        if no_device := why_no_device_here(device, size):
            yield no_device
        no_room = self.download.why_no_room(self.name) if self.download else ""
        if no_room:
            yield no_room


def _download_json(download: Download) -> dict[str, Any]:
    return {
        "bytes": download.bytes,
        "folder": str(download.folder),
        "free_bytes": download.free,
    }


def _download_line(download: Download) -> str:
    size = "size unknown" if download.bytes is None else readable_size(download.bytes)
    return (
        f"download: {size}, to {download.folder} ({readable_size(download.free)} free)"
    )


class DiskOutlook(NamedTuple):
    """The disk that states and network files of a run take at most, in bytes.

    >>> gigabyte = 1_000_000_000
    >>> DiskOutlook(3 * gigabyte, there_bytes=0, free_bytes=90 * gigabyte).line()
    'disk: up to 3 GB of states and files (90 GB free)'
    """

    needed_bytes: int
    there_bytes: int
    """The bytes of them that are on the disk already, from an earlier start."""

    free_bytes: int

    kept_bytes: int = 0
    """Bytes of the quantized model, which is kept in the cache of the
    `training_folder`; 0: it is not kept."""

    def line(self) -> str:
        """The line of a plan. It is a warning where the disk has too little room for
        the bytes that are not on it already."""
        line = f"disk: up to {readable_size(self.needed_bytes)} of states and files"
        if self.there_bytes:
            line += f", {readable_size(self.there_bytes)} of it already on disk"
        if self.kept_bytes:
            line += f"; {readable_size(self.kept_bytes)} for the quantized model"
        line += f" ({readable_size(self.free_bytes)} free)"
        if self.needed_bytes - self.there_bytes <= self.free_bytes:
            return line
        return f"warning: {line}: too little, saves are postponed once the disk is full"


class TimeOutlook(NamedTuple):
    """The time that is left of a run.

    >>> time = TimeOutlook(2000, 1.5, 3000.0, "an RTX 4090", False, {"steps": 3000.0})
    >>> time.line(until_the_data_ends=True)
    'time: about 1.5 s for each step on an RTX 4090 (calculated)'
    """

    steps: int
    step_s: float
    """Seconds per optimizer step."""

    seconds: float
    card: str
    """The card with its article, or the device of an earlier run."""

    measured: bool
    """Whether an earlier run on this machine measured the time of a step; otherwise it
    is calculated."""

    parts: dict[str, float]
    """Part -> its seconds."""

    assumed: bool = False
    """Whether no card was asked for and none is here: it is a well-known one of the
    smallest size that the job fits."""

    arrival: str = ""
    """`StepWork.arrival` of the card."""

    faster: str = ""
    """`RunWork.faster_level` on the card."""

    def line(self, until_the_data_ends: bool, brief: bool = False) -> str:
        """The line of a plan: the time that is left of the run, and its longest parts.
        until_the_data_ends: only the time of a step is known. brief: without the parts.
        """
        source = "measured here" if self.measured else "calculated"
        if self.assumed:
            source += "; the smallest card that it fits, others: --card"
        if until_the_data_ends:
            return f"time: about {self.step_s:.2g} s for each step on {self.card} ({source})"
        line = f"time: {about(self.seconds)} on {self.card} ({source})"
        if brief:
            return line
        for seconds, part in self._named_parts():
            line += f", {amount(seconds)} of it for {part}"
        line += f"; a step takes {self.step_s:.2g} s"
        line += f", {self.arrival}" if self.arrival else ""
        return f"{line}; {self.faster}" if self.faster else line

    def _named_parts(self) -> list[tuple[float, str]]:
        """(seconds, part) of the longest parts in addition to the steps, the longest
        first."""
        least = max(60.0, NAMED * self.seconds)
        others = [
            (seconds, part)
            for part, seconds in self.parts.items()
            if part != "steps" and seconds > least
        ]
        return sorted(others, reverse=True)[:MOST_NAMED]


NAMED = 0.02
"""Share of the time from which on a part of it is named."""

MOST_NAMED = 2
"""How many parts are named at most."""


Beginning = Literal["new", "resumes", "complete", "refused"]


@dataclass(frozen=True)
class StartOutlook:
    """What a start of the job does with the run's folder.

    >>> StartOutlook(Path("output/my_char"), "refused", reason="another run").line(2000)
    'folder: output/my_char: nothing in it is changed'
    """

    folder: Path
    what: Beginning
    step: int = 0
    """Optimizer steps that are done."""

    moves_aside: bool = False
    """An old run is moved aside first."""

    new_place: bool = False
    """The model has another name than before: the run compares its files first."""

    new_dataset_place: bool = False
    """The images of the run are in another folder, or have other names."""

    again: str = ""
    """What happens to the files of a run that has no checkpoint."""

    reason: str = ""
    """Why it is refused."""

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "what": self.what,
            "step": self.step,
            "moves_aside": self.moves_aside,
            "again": self.again or None,
            "reason": self.reason or None,
        }

    def line(self, steps: int) -> str:
        """The line of a plan on the run's folder: what a start does with the files in
        it. steps: of the whole run."""
        if self.again:
            return f"warning: folder: {self.folder}: {self.again}"
        return f"folder: {self.folder}: {self._what_happens(steps)}"

    def _what_happens(self, steps: int) -> str:
        if self.what == "refused":
            return "nothing in it is changed"
        if self.what == "new":
            return (
                "a new run; the old one is moved aside"
                if self.moves_aside
                else "a new run"
            )
        changes = ""
        if self.new_dataset_place:
            changes += "; the dataset has moved, but its images are the same"
        if self.new_place:
            changes += "; the model has another name now: its files are compared first"
        if self.what == "complete":
            return f"complete at step {self.step:,}: nothing to do{changes}"
        if steps == UNTIL_THE_DATA_ENDS:
            return f"resumes at step {self.step:,}{changes}"
        return f"resumes at step {self.step:,} of {steps:,}{changes}"


@dataclass(frozen=True)
class Outlook:
    """All of these, where a process has them; see
    `toolkit.plan.run_plan.RunPlan.outlook`.

    >>> Outlook(will_not_start=("the disk is full",)).to_json()
    {'will_not_start': ['the disk is full']}
    """

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
        lines = []
        if self.start and self.start.what in ("new", "resumes"):
            if self.disk:
                lines.append(self.disk.line())
            lines.append(self._time_line())
        if self.start:
            lines.append(self.start.line(self.steps))
        for reason in self.will_not_start:
            indented = reason.replace("\n", "\n    ")
            lines.append(f"warning: this will not start: {indented}")
        return tuple(lines)

    def summary(self) -> Iterator[str]:
        """Time, disk and folder in a line each; what is a warning is not among them."""
        if self.start and self.start.what in ("new", "resumes"):
            yield self._time_line(brief=True)
            yield self._disk_line()
        if self.start and not self.start.again:
            yield self.start.line(self.steps)

    def _disk_line(self) -> str:
        """What is downloaded and written at most; empty where that is not known, or a
        warning."""
        parts = {}  # with the room for it
        download = self.model and self.model.download
        if download and download.bytes:
            parts[f"{readable_size(download.bytes)} to download"] = download.free
        if self.disk and not self.disk.line().startswith("warning: "):
            size = readable_size(self.disk.needed_bytes + self.disk.kept_bytes)
            parts[f"up to {size} of files"] = self.disk.free_bytes
        room = readable_size(min(parts.values(), default=0))
        return f"disk: {', '.join(parts)} ({room} free)" if parts else ""

    def _time_line(self, brief: bool = False) -> str:
        if self.time:
            return self.time.line(self.steps == UNTIL_THE_DATA_ENDS, brief)
        if self.no_time:
            return f"time: not calculated: {self.no_time}"
        return "time: the first steps will tell"
