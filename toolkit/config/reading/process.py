"""What a config file becomes: `JobConfig` with its processes, each a `ProcessConfig`.

A process section tells the program all it needs before any heavy import: `--dry-run`
and validation use only this. A drop-in's `get_config()` may return any pydantic model;
one that extends `ProcessConfig` can also check the file system and print a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, PrivateAttr

from toolkit.config.reading.base import StrictModel
from toolkit.config.reading.findings import JobContext as JobContext
from toolkit.config.reading.located import KeyPath
from toolkit.errors import Diagnostic as Diagnostic
from toolkit.files.run_files import JOB_STATE


@dataclass(frozen=True)
class ProcessEntry:
    """One entry of `config.process`.

    >>> ProcessEntry(0, "sd_trainer", None, raw={}, section=None).label
    '[0] sd_trainer'
    """

    index: int
    """Place in `config.process`, from 0."""

    type: str
    """The process's type as written."""

    name: str | None
    raw: dict[str, Any]
    """The entry as plain data: defaults merged in, variables filled in, names as the
    user wrote them."""

    section: BaseModel | None
    """The checked section; None for an extension without a config model."""

    places: Mapping[Path, str] = field(default_factory=dict, compare=False)
    """Path that the job gives for images -> its place in the file, with the key."""

    @property
    def label(self) -> str:
        """The name of the process, else its index from 0 in brackets and its type."""
        return self.name or f"[{self.index}] {self.type}"


def job_state_file(name: str, processes: Iterable[ProcessEntry]) -> Path:
    """The job_state.json of a job: in the first `training_folder` that a process gives,
    else in `output`."""
    given = [
        getattr(entry.section, "training_folder", None)
        if entry.section
        else entry.raw.get("training_folder")
        for entry in processes
    ]
    folder = next(
        (folder for folder in given if isinstance(folder, str) and folder), "output"
    )
    return Path(folder).expanduser() / name / JOB_STATE


@dataclass(frozen=True)
class JobConfig:
    """A checked config file.

    Example::

        config = load_job("job.yaml", discover().find_config)
        for entry in config.processes:
            print(entry.label, entry.section)
    """

    job: str
    name: str
    meta: dict[str, Any]
    """For the LoRA's metadata: `[name]` is filled in, `${VAR}` is not."""

    processes: tuple[ProcessEntry, ...]
    warnings: tuple[str, ...]
    """Lines for the user; nothing in them stops the job."""

    path: Path
    unexpanded_text: str
    """YAML to save with the results: `${VAR}` as written, the job's real name, secrets
    redacted."""

    notes: tuple[str, ...] = ()
    """Lines of the plan about the file."""

    whole: bool = True
    """Whether the file says all: no word of the command line changes the job."""


class CallbackConfig(StrictModel):
    """One entry of `callbacks`: a name, or a mapping with `type` and the keys of the
    callback's own section, which extends this one.

    >>> class CopySavesConfig(CallbackConfig):
    ...     to: str
    >>> CopySavesConfig(type="copy_saves", to="/mnt/share").to
    '/mnt/share'
    """

    short_for: ClassVar[str] = "type"

    type: str
    """Which callback: the uid of an extension."""


class ProcessConfig(StrictModel):
    """One entry of `config.process`.

    >>> class DrawingsConfig(ProcessConfig):
    ...     count: int = 3
    >>> DrawingsConfig(type="drawings").display_name(JobContext("my_char"))
    'my_char'
    """

    process_types: ClassVar[tuple[str, ...]] = ()
    """The values of `type:` under which the reference page and the JSON Schema list
    this section."""

    type: str
    """Which process runs: the uid of an extension."""

    name: str | None = None
    """Name of this process, unique within the job; its files then go to
    `<job>/<name>/`."""

    _written: dict[KeyPath, str] = PrivateAttr(default_factory=dict)

    def remember_written(self, written: Mapping[KeyPath, str]) -> None:
        """Key -> text in the file of every value in which `${VAR}` was filled in, for
        `as_written`."""
        self._written.update(written)

    def as_written(self, value: str, *key: str | int) -> str:
        """`value`, which this section has at `key`, with `${VAR}` as it stood there:
        for what is given away with a result. A single value that stands for a list, or
        for a section, was written at the key above."""
        texts = (self._written.get(key[:depth]) for depth in range(len(key), 0, -1))
        return next((text for text in texts if text is not None), value)

    def display_name(self, job: JobContext) -> str:
        """The name of the process; the name of the job where it has none."""
        return self.name or job.name

    def outputs(self, job: JobContext) -> frozenset[Path]:
        """Folders that this process writes and that a later process may read; by
        default none."""
        return frozenset()

    def run_folder(self, job: JobContext) -> Path | None:
        """The folder of run files that this process alone owns. None, the default, for
        a process without one."""
        return None

    def outputs_exist(self, job: JobContext) -> bool:
        """Whether the results of a finished run of this process exist: only then a
        restart of the job skips it."""
        folder = self.run_folder(job)
        paths = {*self.outputs(job)}
        if folder:
            paths.add(folder)
        return all(path.exists() for path in paths)

    def logged_numbers(self) -> Sequence[str]:
        """Names of the numbers that a run of this section logs: any of them may be the
        metric of `stop_when`."""
        return ()

    def recorded_settings(self) -> dict[str, Any]:
        """The settings that a state records and a resume compares, as plain data: all
        keys that decide the result."""
        return self.model_dump(mode="json")

    def inputs_digest(self, job: JobContext) -> str:
        """A hash of what the process reads and its settings do not say, such as a
        dataset; empty: nothing is.

        A job skips a finished process only where it is the same.
        """
        return ""

    def plan(self, job: JobContext) -> Any:
        """The plan of a run, a `toolkit.plan.run_plan.RunPlan`, or None. May scan the
        dataset; writes nothing."""
        return None
