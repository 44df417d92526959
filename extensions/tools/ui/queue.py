"""The queue: a folder with one JSON file for each command of `run.py` that is to run, so it survives every restart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One command that waits, runs, or has ended."""

    id: str
    argv: tuple[str, ...]
    """What follows `run.py`."""

    name: str
    state: str
    """`waiting`, `running`, `done`, `stopped`, `failed`."""


class Queue:
    """The entries in their order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, argv: Sequence[str], name: str) -> Entry:
        """A new entry at the end, which the runner starts when a GPU is free."""
        raise NotImplementedError

    def entries(self) -> tuple[Entry, ...]:
        """All entries: running, then waiting in their order, then those that have ended, the latest first."""
        raise NotImplementedError

    def start_runner(self) -> None:
        """Starts the detached process that works on the queue, where none does."""
        raise NotImplementedError
