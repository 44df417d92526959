"""The calls that Python's modules for files make to the system, counted and answered
with errors: the table of calls and errors is made from what a piece of work calls."""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import product
from typing import Any, NamedTuple

import pytest

from toolkit.files import writing

ERRORS = (errno.EINVAL, errno.EPERM, errno.ENOSPC, errno.EIO, errno.EXDEV, errno.EROFS)

CALLS = {
    os: (
        *(
            "open",
            "fsync",
            "replace",
            "rename",
            "link",
            "mkdir",
            "rmdir",
            "unlink",
            "remove",
            "chmod",
            "symlink",
        ),
        *("stat", "lstat", "scandir", "listdir", "statvfs", "utime", "ftruncate"),
    ),
    io: ("open",),
    builtins: ("open",),
    fcntl: ("flock",),
}
"""What Python's modules for files call."""


class Call(NamedTuple):
    name: str
    of: str
    """A file, or a folder."""

    number: int
    """It is so manieth of its name among those that are watched."""


class Disk:
    """Counts calls, and fails one of them."""

    def __init__(
        self,
        failing: Call | None = None,
        error: int = 0,
        watches: Callable[[], bool] = lambda: True,
    ) -> None:
        """watches: whether a call that is made now counts."""
        self.failing, self.error = failing, error
        self.calls: list[Call] = []
        self._watches = watches
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def meet(self, name: str, place: Any) -> None:
        """Raises where this call is the one that fails."""
        if not self._watches():
            return
        if hasattr(place, "fileno"):
            place = place.fileno()
        try:
            mode = (
                real_fstat(place).st_mode
                if isinstance(place, int)
                else real_stat(place).st_mode
            )
        except OSError:
            mode = 0
        with self._lock:
            self._counts[name] += 1
            call = Call(
                name, "folder" if stat.S_ISDIR(mode) else "file", self._counts[name]
            )
            self.calls.append(call)
        if self.failing and (call.name, call.number) == (
            self.failing.name,
            self.failing.number,
        ):
            raise OSError(
                self.error,
                os.strerror(self.error),
                None if isinstance(place, int) else os.fspath(place),
            )


real_stat, real_fstat = os.stat, os.fstat


@contextmanager
def answering(disk: Disk) -> Iterator[pytest.MonkeyPatch]:
    """Inside the block the system is asked through `disk`."""
    with pytest.MonkeyPatch.context() as patch:
        for module, names in CALLS.items():
            for name in names:
                known = name if module in (os, fcntl) else "io.open"
                real = getattr(module, name)
                asked = through(disk, known, real)
                patch.setattr(module, name, asked)
                if real in os.supports_follow_symlinks:  # `shutil.copystat` looks there
                    both = os.supports_follow_symlinks | {asked}
                    patch.setattr(os, "supports_follow_symlinks", both)
        patch.setattr(writing, "_warned", set(), raising=False)
        yield patch


def through(disk: Disk, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """A call that meets the disk first."""

    @wraps(real)
    def asked(*arguments: Any, **named: Any) -> Any:
        disk.meet(name, arguments[0] if arguments else ".")
        return real(*arguments, **named)

    return asked


def each_kind(calls: Sequence[Call]) -> Iterator[tuple[Call, int]]:
    """Each error as the answer to each kind of call, and to calls of that kind from the
    first to the last."""
    kinds: dict[tuple[str, str], list[Call]] = {}
    for call in calls:
        kinds.setdefault((call.name, call.of), []).append(call)
    for of_kind, (turn, error) in product(kinds.values(), enumerate(ERRORS)):
        yield of_kind[turn * (len(of_kind) - 1) // (len(ERRORS) - 1)], error
