"""Files of other programs that become a job at once, as the loader asks for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from toolkit.config.located import ConfigNode, Diagnostics

SCRIPT = "<script>"
"""The key of a pasted command's script beside those of its flags."""


@dataclass(frozen=True)
class Command:
    """How a program is started that trains."""

    scripts: tuple[str, ...]
    flags: Collection[str]
    many: frozenset[str] = frozenset()
    """Flags that take several values."""

    texts: re.Pattern[str] = re.compile("(?!)")
    """Flags that are text, whatever they look like."""

    joined: Callable[[ConfigNode, ConfigNode, Diagnostics], ConfigNode | None] | None = None
    """The root of two commands that are one training; None of others."""

    known_by: str = ""
    """A flag without which a script with a name that many have is another program's."""

    def starts(self, script: str, words: Sequence[str]) -> bool:
        """Whether a script with such words behind it is this program's."""
        is_known = not self.known_by or "/" in script
        is_known = is_known or any(word.partition("=")[0] == f"--{self.known_by}" for word in words)
        return script in self.scripts and is_known


class Reader(Protocol):
    """Reads one file."""

    def job(self) -> ConfigNode:
        """The whole job."""


class ForeignJobs:
    """A `toolkit.config.foreign.ForeignFile`, whose own text is not kept."""

    keeps_text = False

    def __init__(
        self,
        reads: Callable[[ConfigNode], bool],
        reader: Callable[[ConfigNode, Path, str | None, Diagnostics, Mapping[str, str]], Reader],
    ) -> None:
        """reads: whether a file that is no job is of this kind. reader: of one, with the arguments of `as_job`."""
        self.reads, self._reader = reads, reader

    def with_flags(
        self, root: ConfigNode | None, flags: Mapping[str, Sequence[str]], diagnostics: Diagnostics
    ) -> ConfigNode:
        raise AssertionError("flags beside a file are FluxFlow's")

    def as_job(
        self,
        root: ConfigNode,
        folder: Path,
        name: str | None,
        diagnostics: Diagnostics,
        moved: Mapping[str, str] = MappingProxyType({}),
    ) -> ConfigNode:
        return self._reader(root, folder, name, diagnostics, moved).job()

    def renamed(self, root: ConfigNode, name: str) -> ConfigNode:
        raise AssertionError("its text is not kept")
