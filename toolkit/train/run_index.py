"""The runs below a folder, for a program that asks for them repeatedly.

A folder is read again only when a file in it has changed. The index is in memory only:
it is rebuilt when in doubt, and lost with the process. It reads no metrics and imports
no torch. A program that stays open uses it; a program that asks once calls
`run_reader.list_runs`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from operator import is_not
from pathlib import Path

from toolkit.errors import RunError
from toolkit.files.run_files import STATUS
from toolkit.files.shared_look import SharedLook
from toolkit.train.lock import FILE as LOCK
from toolkit.train.run_reader import RunInfo, RunStatus, read_run

FRESH_S = 3.0
"""A file that was written less than so many seconds ago may be written again without
another time (mtime)."""

Mark = tuple[tuple[int, int, int], ...]
"""Inode, time and size of the folder, its lock and its status: equal where nothing was
written meanwhile."""

Place = tuple[str, ...]
"""Names of the folder of a job, and of the folder of a process in it."""


@dataclass(frozen=True)
class _Known:
    mark: Mark
    run: RunInfo | None
    """None: no run is there."""


class RunIndex:
    """`list_runs`, remembered. Several threads may ask.

    >>> RunIndex(Path("output")).runs()
    ()
    """

    def __init__(self, folder: Path) -> None:
        """folder: the training folder."""
        self.folder = folder
        self._known: dict[Place, _Known] = {}
        self._inner: dict[str, tuple[Mark, tuple[str, ...]]] = {}
        self._shared = SharedLook(self._look_at_all)

    def runs(self) -> tuple[RunInfo, ...]:
        """All runs, in the order of their paths, as they are now. The same object as
        before where nothing has changed."""
        return self._shared.now()

    def _look_at_all(self, before: tuple[RunInfo, ...] | None) -> tuple[RunInfo, ...]:
        self._known = {place: self._look(place) for place in sorted(self._places())}
        runs = tuple(known.run for known in self._known.values() if known.run)
        if before is None or len(runs) != len(before) or any(map(is_not, runs, before)):
            return runs
        return before

    def _places(self) -> Iterator[Place]:
        jobs = _folders_in(str(self.folder))
        inner = dict[str, tuple[Mark, tuple[str, ...]]]()
        for job in jobs:
            path = f"{self.folder}{os.sep}{job}"
            mark = mark_of(path)
            known = self._inner.get(job)
            if known is None or known[0] != mark or is_fresh(mark):
                known = mark, _folders_in(path)
            inner[job] = known
            yield (job,)
            for name in known[1]:
                yield job, name
        self._inner = inner

    def _look(self, place: Place) -> _Known:
        path = os.sep.join((str(self.folder), *place))
        known = self._known.get(place)
        if (
            known
            and not known.run
            and len(known.mark) == 1
            and known.mark == mark_of(path)
        ):
            # without a lock and a status, which could not come without changing the
            # folder
            return known
        mark = mark_of(path, LOCK, STATUS)
        if (
            known
            and known.mark == mark
            and (not known.run or known.run.status is not RunStatus.RUNNING)
        ):
            return known
        run = None
        with suppress(RunError, OSError, ValueError):
            run = read_run(Path(path))
        if is_fresh(mark):
            return _Known((), run)
        return _Known(
            mark if run or any(part[0] for part in mark[1:]) else mark[:1], run
        )


def mark_of(folder: str, *names: str) -> Mark:
    """The mark of a folder and of files in it: the inode, the time of the last change
    in nanoseconds and the bytes of each. Zeros for one that does not exist or cannot be
    read.

    >>> mark_of("missing", "run.json")
    ((0, 0, 0), (0, 0, 0))
    """
    stats = []
    for path in (folder, *(f"{folder}{os.sep}{name}" for name in names)):
        try:
            about = os.stat(path)
            stats.append((about.st_ino, about.st_mtime_ns, about.st_size))
        except (OSError, ValueError):
            stats.append((0, 0, 0))
    return tuple(stats)


def is_fresh(mark: Mark) -> bool:
    """Whether the folder or one of the files was changed in the last `FRESH_S` seconds,
    so that an equal mark says nothing."""
    return max(time_ns for _, time_ns, _ in mark) > (time.time() - FRESH_S) * 1e9


def _folders_in(folder: str) -> tuple[str, ...]:
    try:
        with os.scandir(folder) as entries:
            return tuple(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return ()
