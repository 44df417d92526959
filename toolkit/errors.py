"""Errors the user can act on, and their exit codes.

`UserError` is shown as its message alone, `RunError` too; any other exception is a bug
and keeps its traceback. `Interrupted` is not an error: it carries the signal that ended
the program.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

EXIT_DONE = 0
EXIT_FAILURE = 1
EXIT_MISTAKE = 2
EXIT_SIGINT = 130
EXIT_SIGTERM = 75


class UserError(Exception):
    """The input (config, dataset, extension) is wrong; nothing expensive has started.
    Exit code 2."""

    exit_code = EXIT_MISTAKE


class DownloadError(UserError):
    """Something that the input names cannot be brought today: the network, the disk or
    the hub fails. A later start may succeed, so the exit code is that of a failure,
    1."""

    exit_code = EXIT_FAILURE


class RunError(Exception):
    """The run cannot continue, for a reason the message explains. Exit code 1."""

    exit_code = EXIT_FAILURE


class ExtensionError(RunError):
    """The code of an extension failed, and the message says what it lacks."""


class OutOfMemory(RunError):
    """The run cannot continue: memory ran out."""


class ReportedExit(SystemExit):
    """One of several ranks exits, and the error has been reported: `code` is the exit
    code."""


class Interrupted(BaseException):
    """A signal asked the program to end. Not an `Exception`, so that no handler
    swallows it."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"stopped, exit code {exit_code}")
        self.exit_code = exit_code


KeyPath = tuple[str | int, ...]
"""Keys from the top of a file or of a section down, such as ("datasets", 0,
"folder_path")."""

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Diagnostic:
    """Something that is wrong, or worth knowing: in a job, a dataset, a file, the
    numbers of a run.

    >>> print(Diagnostic(("datasets", 0, "folder_path"), "'photos' does not exist."))
    datasets.0.folder_path: 'photos' does not exist.
    """

    key: KeyPath
    """The keys from the section down; else one text, such as "file:line:column:
    dotted.key" or a path. For a LoRA file: its layers. Empty: no particular place."""

    message: str
    """The value that was found, and what to write instead where `remedy` does not say
    it."""

    severity: Severity = "error"
    check: str = ""
    """Name of the check that found it."""

    cause: str = ""
    remedy: str = ""

    @property
    def place(self) -> str:
        """The key as it is printed, its parts joined by dots.

        >>> Diagnostic(("train", "lr"), "is negative").place
        'train.lr'
        """
        return ".".join(map(str, self.key))

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class InputErrors(UserError):
    """All errors found in one pass over the input, one line each."""

    def __init__(self, mistakes: Sequence[Diagnostic]) -> None:
        super().__init__("\n".join(str(mistake) for mistake in mistakes))
        self.errors = tuple(mistakes)


class ConfigErrors(InputErrors):
    """Errors in a config file."""


class DataErrors(InputErrors):
    """Errors in a dataset: every offending file, not only the first."""


SHORT_LIST = 8
"""At most so many names are all listed, if none is close to an unknown one."""


def did_you_mean(name: str, known: Iterable[str], *, list_all: bool = True) -> str:
    """The remedy for an unknown name: the known one that is close to it; then all of
    them with `list_all`.

    Without, and with none that is close: all of a short list, nothing of a long one,
    whose names would mislead.

    >>> did_you_mean("stesp", ["steps", "lr"])
    "Did you mean 'steps'? Known names: lr, steps."
    """
    known = sorted(known)
    same = [word for word in known if word.lower() == str(name).lower()]
    close = same or get_close_matches(str(name), known, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    if list_all or (not close and len(known) <= SHORT_LIST):
        return f"{hint}Known names: {', '.join(known)}."
    return hint.strip()


def install_command(packages: str, options: str = "") -> str:
    """The command of a shell that installs packages into the environment which runs the
    program. options: of pip.

    pipx 1.18 writes pipx_metadata.json into its environments; `uv tool` and `uv venv`
    of uv 0.13 make theirs without pip.

    >>> install_command("pi-heif")  # doctest: +SKIP
    'pipx inject atelier pi-heif'
    """
    environment = Path(sys.prefix)
    words = f"{options} {packages}".strip()
    if (environment / "pipx_metadata.json").is_file():
        given = f"--pip-args={options} " if options else ""
        return f"pipx inject {given}{environment.name} {packages}"
    # Not `find_spec("pip")`: setuptools' hook takes that for a run of pip, and can no
    # longer be imported afterwards.
    if not any((Path(entry) / "pip").is_dir() for entry in sys.path):
        return f"uv pip install --python {shlex.quote(sys.executable)} {words}"
    return f"{shlex.quote(sys.executable)} -m pip install {words}"


def missing_package(package: str, what: str) -> str:
    """The package to install before `what` (plural) can be made; empty where it is
    installed. Imports nothing.

    >>> missing_package("json", "examples")
    ''
    """
    if find_spec(package) is None:
        return f"{what} need the package {package!r}, which is not installed. Run: {install_command(package)}"
    return ""


def in_series(words: Sequence[str]) -> str:
    """At least one word, as a sentence lists them.

    >>> in_series(["LoRA", "LoHa", "LoKr"])
    'LoRA, LoHa and LoKr'
    """
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def first_line(error: Exception) -> str:
    """The first line of an error's text, or the name of its class if it has no text.

    >>> first_line(OSError("no route\\nto host")), first_line(TimeoutError())
    ('no route', 'TimeoutError')
    """
    return (
        str(error).strip().splitlines()[0]
        if str(error).strip()
        else type(error).__name__
    )


def with_short_words(text: str) -> str:
    """A message without words that fill screens, such as a whole file that is taken for
    the name of a key."""
    return re.sub(r"\S{1000,}", lambda match: match[0][:100] + "...", text)
