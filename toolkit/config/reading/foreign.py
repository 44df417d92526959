"""The interface to the keys, files and commands of other programs.

It holds the types (`ForeignName`, `ForeignKeys`, `ForeignFile`) and the questions that
the core asks: does another program have this key, is this text a command of another
program, which reader reads this file. The answers are in a part of the program that
`toolkit/registry.py` names. Without that part, no other program has any key.

`loader.py`, `normalise.py`, `tool.py` and `run.py` ask. No name of another program is
listed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel

from toolkit.config.reading.located import ConfigNode, Diagnostics
from toolkit.registry import (
    FILE_OF_FLAGS,
    FOREIGN_FILES,
    FOREIGN_KEYS,
    find_object,
    load_object,
)

NO_DEFAULT: Any = object()


class ForeignName(NamedTuple):
    """What a key or flag of another program is here.

    >>> ForeignName("renamed_to", ("train.steps",)).field
    'steps'
    """

    how: Literal[
        "renamed_to",
        "converted_to",
        "use_instead",
        "not_needed",
        "only_accepts",
        "no_counterpart",
    ]
    """renamed_to: another name of `ours`. converted_to: a function turns it into
    `ours`. use_instead: `ours` does something like it. not_needed: has no effect, for
    the reason in `says`. only_accepts: an error unless its value is one of `passes`.
    no_counterpart: not here."""

    ours: tuple[str, ...] = ()
    """Keys of a job, each with its place as the reference page writes it:
    `datasets[].num_repeats`."""

    says: str = ""
    """How the meaning differs, or why there is no such key."""

    passes: tuple[Any, ...] = ()
    """For `only_accepts`: the values that have no effect."""

    tool: str = ""
    """The command that does it, as `run.py` takes it: `generate --negative`."""

    default: Any = NO_DEFAULT
    """Theirs where the key is left out, if ours is another."""

    @property
    def field(self) -> str:
        """For `renamed_to`: the key in the section where it stands."""
        return self.ours[0].rpartition(".")[2]


Noted = Callable[[ConfigNode], None]
"""Takes note of a key of another program."""


class ForeignKeys:
    """The keys of other programs: none. The part that knows them derives from it.

    >>> ForeignKeys().hint("max_train_steps")
    ''
    """

    def rewritten(
        self,
        model: type[BaseModel],
        node: ConfigNode,
        diagnostics: Diagnostics,
        known: Noted,
    ) -> ConfigNode:
        """A process in our keys, each where its value was written; keys that no program
        has stay. known: called with each key of another program."""
        return node

    def rows(self, section: type[BaseModel]) -> Mapping[str, ForeignName]:
        """The names that are rewritten in this section, or refused. None of them is a
        field of the section."""
        return {}

    def hint(self, key: str) -> str:
        """The remedy for a key that is unknown at its place; empty where no program has
        the key."""
        return ""

    def own_flag(self, word: str, keys: Iterable[str]) -> str:
        """The word of a command line, with the flag of a tool with these keys where it
        is another program's."""
        return word

    def flag_remedy(self, word: str) -> str:
        """The remedy for a flag of another program; empty for all other words."""
        return ""


@cache
def foreign_keys() -> ForeignKeys:
    """The table of the installed part that knows other programs; none without that
    part. It is loaded once."""
    keys: ForeignKeys = find_object(FOREIGN_KEYS) or ForeignKeys()
    return keys


COMMAND_LINE = "command line"
"""Stands for the name of a file where the flags of another program are all there is."""


class ForeignFile(Protocol):
    """A kind of file that was written for another program.

    Example::

        reader = foreign_file(root)
        if reader:
            root = reader.as_job(root, Path(path).parent, name, diagnostics, {})
    """

    keeps_text: bool
    """Whether its own text is saved with the results, instead of the job that it
    became."""

    def reads(self, root: ConfigNode) -> bool:
        """Whether a file that is not a job is of this kind."""

    def as_job(
        self,
        root: ConfigNode,
        folder: Path,
        name: str | None,
        diagnostics: Diagnostics,
        moved: Mapping[str, str],
    ) -> ConfigNode:
        """The root of the job that such a file describes.

        folder: of the file, where files that it names are looked for first. name: of
        the job, instead of the file's. moved: folder -> where it is now, for the paths
        in files that this one names.
        """


class KeptFile(ForeignFile, Protocol):
    """One whose own text is saved, and the flags of its program."""

    def with_flags(
        self,
        root: ConfigNode | None,
        flags: Mapping[str, Sequence[str]],
        diagnostics: Diagnostics,
    ) -> ConfigNode:
        """The root with the flags in their places; None: a root of them alone. Raises
        ConfigErrors for a file of another kind."""

    def renamed(self, root: ConfigNode, name: str) -> ConfigNode:
        """The root as it would be written for a job of this name."""


_BEFORE = (
    r"#.*|(?:cd|source|pip|git|mkdir|echo|\.|export|set|declare|call|conda|rem|REM|@echo|modelscope|hf|huggingface-cli|"
    r"\$(?:env:)?\w+[ \t]*=)[ \t].*|(?:\$(?:env:)?)?\w+\+?=.*|```\w*|[\"']?--[a-z].*|[(){}:][^\n]*|"
    r"[%!](?:cd|env|pip|git|mkdir|wget|curl|apt|apt-get)[ \t].*|"
    r"(?:if|then|elif|else|fi|for|while|until|do|done|case|esac|function|read|exit|return|trap|test|sleep|ls|cp|mv|rm|ln|"
    r"chmod|unset|ulimit|wget|curl|apt|apt-get|nvidia-smi|param|pause|title|chcp|setlocal|Write-Host|Write-Output|"
    r"Set-Location)(?![\w-])(?:[ \t;(].*)?"
)
"""A line that prepares the shell, or decides whether what follows runs."""

SHELL_SUFFIXES = (
    ".sh",
    ".bash",
    ".zsh",
    ".bat",
    ".cmd",
    ".ps1",
    ".sbatch",
    ".slurm",
    ".env",
)
"""Suffixes of files that can only be read for the command in them."""

NO_COMMAND = (
    "holds no command that is read. Give the command that starts the training in quotes to 'run.py import', or alone "
    "in a file."
)
"""Suffixes of such a file, or of a program."""

_COMMAND = re.compile(
    rf"(?:[ \t]*(?>(?:{_BEFORE})(?:(?:(?<=[\\`^])|(?<=[\\`^]\r))\r?\n.*)*)?\r?\n)*"
    r"[ \t]*(?:(?:[A-Za-z_]\w*=\S*|\$|&|(?:nohup|time|sudo|exec|srun|env|stdbuf|nice|"
    r"(?:poetry|conda|mamba|micromamba|pipenv)[ \t]+run)(?:[ \t]+-\S+(?:[ \t]+(?!accelerate|python)[\w./]\S*)?)*)"
    r"[ \t]+|!)*"
    r"(?:[^\s!]{0,300}[/\\])?(?:accelerate|deepspeed|python[\d.]*|py|uv|torchrun|[^\s!]{1,300}\.py)"
    r"(?:\.exe)?[\"']?[ \t]+[^\s:=]"
)
"""The first command of a script: comments and what prepares the shell may stand above
it."""


_SCRIPT_WITH_FLAGS = re.compile(r"\.py[\"']?(?:[ \t]|[\\^`]?\r?\n)+--[a-z]")


def is_command(text: str) -> bool:
    """Whether a text is a command of another program, pasted from a terminal."""
    return bool(_COMMAND.match(text))


def holds_command(text: str) -> bool:
    """Whether there is one in a text that is a command or the name of a file: behind a
    prompt, in a container."""
    return is_command(text) or bool(_SCRIPT_WITH_FLAGS.search(text))


def foreign_file(root: ConfigNode) -> ForeignFile | None:
    """The reader of a file of another program; None where the root has the key `job` or
    `config`, or where no reader knows the file."""
    if {"job", "config"} & root.value.keys():
        return None
    readers: Iterable[ForeignFile] = map(load_object, FOREIGN_FILES.values())
    return next((reader for reader in readers if reader.reads(root)), None)


def kept_file(root: ConfigNode) -> KeptFile | None:
    """The reader of a file whose own text is saved; None for all others."""
    reader: KeptFile | None = find_object(FILE_OF_FLAGS)
    return reader if reader and reader.reads(root) else None
