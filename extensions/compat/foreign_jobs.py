"""Files of other programs that become a job at once, as the loader asks for them.

A `ForeignJobs` pairs a test for the shape of a file with a reader. It does not keep the
text of the file: a job that is written from it is in our keys. `musubi` and
`not_read` make one each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from toolkit.config.reading.located import ConfigNode, Diagnostics

SCRIPT = "<script>"
"""The key of a pasted command's script beside those of its flags."""


class Reader(Protocol):
    """Reads one file.

    Example::

        reader: Reader = _Reader(root, folder, name, diagnostics, moved)  # of `musubi`
        job = reader.job()
    """

    def job(self) -> ConfigNode:
        """The whole job."""


class ForeignJobs:
    """A `toolkit.config.reading.foreign.ForeignFile`, whose own text is not kept.

    Example::

        jobs = ForeignJobs(reads, reader)
        if jobs.reads(root):
            root = jobs.as_job(root, folder, name, diagnostics)
    """

    keeps_text = False

    def __init__(
        self,
        reads: Callable[[ConfigNode], bool],
        reader: Callable[
            [ConfigNode, Path, str | None, Diagnostics, Mapping[str, str]], Reader
        ],
        name: str = "",
    ) -> None:
        """reads: whether a file that is not a job is of this kind. reader: of one, with
        the arguments of `as_job`."""
        self.name = name
        self.reads = reads
        self._reader = reader

    def with_flags(
        self,
        root: ConfigNode | None,
        flags: Mapping[str, Sequence[str]],
        diagnostics: Diagnostics,
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
