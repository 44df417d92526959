"""Keys that several tools have, and checks of their values. Imports no torch.

The checks yield `Diagnostic`s before anything expensive starts: a folder, LoRA file or
output that is missing, of another kind, or in the way. What the files mean is not
checked here, except that a LoRA belongs to the model.

The sections of nearly all tools (`config.py` in their folders) use them, and so does
the page (`ui/views`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from toolkit.config.reading.field_types import PathStr, WritePathStr, near_path
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.reading.tool import ToolConfig
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.model_files import INDEX
from toolkit.errors import UserError
from toolkit.files.archives import archive_in
from toolkit.files.run_files import saved_as
from toolkit.files.safetensors_io import is_own_file
from toolkit.files.writing import (
    file_in_the_way,
    folder_at,
    is_own_folder,
    why_not_replaced,
)
from toolkit.models.adapter_origin import origin_findings, unreadable
from toolkit.train.run_reader import near_run, runs_in


class RunToolConfig(ToolConfig):
    """Keys of the tools that read runs.

    Example::

        class DiagramsConfig(RunToolConfig):
            process_types: ClassVar[tuple[str, ...]] = ("diagrams",)
    """

    positional: ClassVar[tuple[str, ...]] = ("run",)

    run: PathStr
    """Folder of a run."""

    def folder(self) -> Path:
        """`run` as a path."""
        return Path(self.run).expanduser()

    def check_runs(self, job: JobContext) -> Iterator[Diagnostic]:
        """Reports a folder that contains no run."""
        if not job.will_write(self.folder()) and not runs_in(self.folder()):
            yield Diagnostic(
                ("run",),
                f"{self.run!r} contains no run (no run.json). Give the folder of a run."
                f"{near_run(self.folder())}",
            )


class FileToolConfig(ToolConfig):
    """Keys of the tools that write weights.

    Example::

        class AraConfig(FileToolConfig):
            process_types: ClassVar[tuple[str, ...]] = ("ara",)
    """

    output: WritePathStr
    """File to write (.safetensors)."""

    overwrite: bool = False
    """Replace what this program wrote there."""

    def output_path(self) -> Path:
        """`output` as a path."""
        return Path(self.output).expanduser()

    def outputs(self, job: JobContext) -> frozenset[Path]:
        """The file to write."""
        return frozenset({self.output_path().resolve()})

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports an output that exists or cannot be written."""
        yield from super().check(job)
        yield from check_output(
            self.output_path(), self.overwrite, job, self.writes_folder()
        )

    def writes_folder(self) -> bool:
        """Whether `output` is a folder."""
        return False


def check_folder(
    key: tuple[str | int, ...], path: str, job: JobContext
) -> Iterator[Diagnostic]:
    """Reports a folder to read that is missing, unless an earlier process of the job
    writes it."""
    folder = Path(path).expanduser()
    if folder.is_dir() or job.will_write(folder):
        return
    reason = f"is not a folder (working directory: {Path.cwd()})."
    near = near_path(path) or "Give a folder."
    if archive_in(path):
        reason = "is a zip file, which jobs read and this tool does not."
        near = "Unpack it."
    elif folder.is_file():
        reason, near = "is a file.", f"Give its folder, {str(folder.parent)!r}."
    yield Diagnostic(key, f"{path!r} {reason} {near}".rstrip())


def check_page(
    path: Path, is_own: Callable[[Path], bool], example: str
) -> Iterator[Diagnostic]:
    """Reports a file to write (`output`) that is a folder, belongs to another program,
    or would be below a file. example: a name for it."""
    if path.is_dir():
        yield Diagnostic(
            ("output",),
            f"'{path}' is a folder. Give a file, such as '{path / example}'.",
        )
        return
    reason = why_not_replaced(path, is_own)
    if reason:
        yield Diagnostic(("output",), reason)
    else:
        yield from check_place(path.parent)


def check_place(
    folder: Path, key: str = "output", remedy: str = "Give a path in a folder."
) -> Iterator[Diagnostic]:
    """Reports a file where a folder is to be made."""
    file = file_in_the_way(folder)
    if file:
        yield Diagnostic((key,), f"'{file}' is a file. {remedy}")


def check_model_folder(
    key: tuple[str | int, ...], path: str, job: JobContext
) -> Iterator[Diagnostic]:
    """Reports a folder that holds no model, unless an earlier process of the job writes
    it."""
    folder = Path(path).expanduser()
    if not job.will_write(folder) and not (folder / INDEX).is_file():
        yield Diagnostic(key, f"{path!r} holds no {INDEX}. Give the folder of a model.")


_NUMBER = r"-?\d*[.,]?\d+ ?%?"
_STRENGTH = re.compile(
    rf"(.+\.safetensors)(?:->|[\s=@*,;:(\[x#|])+({_NUMBER})(?:[x)\]]|:{_NUMBER})?"
)
"""A file and its strength, behind whatever sign."""


def strength_of(text: str) -> str:
    """A strength as it is to be written; empty for a text that is not a number.

    >>> strength_of("0,8"), strength_of("80%"), strength_of("OUTS")
    ('0.8', '0.8', '')
    """
    share, sign, _ = text.replace(",", ".").partition("%")
    if not re.fullmatch(_NUMBER, text):
        return ""
    return f"{float(share) / 100:g}" if sign else share


def split_strength(text: str) -> tuple[str, float]:
    """`FILE[:STRENGTH]` -> (file, strength), 1 without. Raises UserError for a strength
    that is not a number, or behind another sign.

    >>> split_strength("a.safetensors:0.8"), split_strength("b.safetensors")
    (('a.safetensors', 0.8), ('b.safetensors', 1.0))
    """
    typed = _STRENGTH.fullmatch(text)
    right = typed and f"{typed[1]}:{strength_of(typed[2])}"
    if right and right != text:
        message = f"{text!r}: a strength stands behind its file and a colon."
        raise UserError(f"{message} Write {right!r}.")
    path, colon, strength = text.rpartition(":")
    if (
        not colon
        or "/" in strength
        or "\\" in strength
        or strength.endswith(".safetensors")
    ):
        return text, 1.0
    try:
        number = float(strength)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        remedy = "Write FILE, or FILE:STRENGTH such as a.safetensors:0.8."
        raise UserError(f"{text!r}: {strength!r} is not a number. {remedy}")
    return path, number


def check_safetensors(
    key: tuple[str | int, ...], path: str, job: JobContext
) -> Iterator[Diagnostic]:
    """Reports a file that is missing, or is not a safetensors file."""
    file = Path(path).expanduser()
    if job.will_write(file):
        return
    if file.is_dir():
        yield Diagnostic(key, f"{path!r} is a folder. {_file_in(file)}")
        return
    if not file.is_file():
        saved_path = saved_as(f"output/{path}")
        near = near_path(path) or "Give a LoRA file."
        if saved_path:
            near = f"Did you mean '{saved_path}'?"
        yield Diagnostic(
            key,
            f"{path!r} is not a file (working directory: {Path.cwd()}). {near}".rstrip(),
        )
        return
    fault = unreadable(path)
    if fault:
        yield Diagnostic(key, fault)


def _file_in(folder: Path) -> str:
    """A remedy that names a safetensors file of a folder: the one with the folder's
    name, or the newest."""
    with suppress(OSError):
        files = sorted(
            folder.glob("*.safetensors"),
            key=lambda file: (file.stem == folder.name, file.stat().st_mtime),
        )
        if files:
            return f"Give a file in it, such as '{files[-1]}'."
    return "It holds no .safetensors file."


def check_loras(
    key: str, files: Sequence[str], job: JobContext
) -> Iterator[Diagnostic]:
    """Reports LoRA files that are missing or of another kind, and strengths that are
    not numbers."""
    for index, text in enumerate(files):
        if index and re.fullmatch(_NUMBER, text):
            text = f"{files[index - 1]} {text}"
        try:
            file, _ = split_strength(text)
        except UserError as error:
            yield Diagnostic((key, index), str(error))
        else:
            yield from check_safetensors((key, index), file, job)


def check_origins(
    key: str, files: Sequence[str], find: Callable[[], ModelConfig]
) -> Iterator[Diagnostic]:
    """Reports LoRA files (FILE[:STRENGTH]) of another model than `find` gives. Files
    that cannot be read are reported elsewhere."""
    with suppress(UserError):
        model = find()
        for index, text in enumerate(files):
            yield from origin_findings(
                f"{key}.{index}", split_strength(text)[0], model, model.files_folder()
            )


def check_output(
    path: Path, overwrite: bool, job: JobContext, folder: bool = False
) -> Iterator[Diagnostic]:
    """Reports a safetensors file (or a folder) that cannot be written, or exists and
    may not be replaced. An output that this process of the job wrote at an earlier
    start may be replaced."""
    there = folder_at(path) if folder else path
    file = file_in_the_way(path.parent)
    if file:
        yield Diagnostic(("output",), f"'{file}' is a file. Give another place.")
    elif not folder and path.suffix != ".safetensors":
        yield Diagnostic(("output",), f"{str(path)!r} must end in .safetensors.")
    elif there.exists() and there.is_dir() != folder:
        yield Diagnostic(
            ("output",),
            f"'{path}' is a {'file' if folder else 'folder'}. Give another place.",
        )
    else:
        reason = why_not_replaced(there, is_own_folder if folder else is_own_file)
        if reason:
            yield Diagnostic(("output",), reason)
        elif there.exists() and not (overwrite or job.was_finished):
            yield Diagnostic(
                ("output",),
                f"'{path}' exists already. Give another place, or set overwrite (--overwrite).",
            )
