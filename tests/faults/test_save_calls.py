"""Every kind of call to the system that a save makes, answered with every error that a
disk may give: a call that only durability or tidiness needs ends no run, and any other ends it
with a line, from which the run goes on."""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.faults import small
from toolkit.errors import RunError
from toolkit.files import writing
from toolkit.train.callbacks.save import SaveCallback
from toolkit.train.checkpoint_store import checkpoint_folders, verify

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
        ),
        *("stat", "lstat", "scandir", "listdir", "statvfs", "utime", "ftruncate"),
    ),
    io: ("open",),
    builtins: ("open",),
    fcntl: ("flock",),
}
"""What Python's modules for files call."""

NEEDED = {"open", "io.open", "mkdir", "replace", "rename", "stat", "lstat", "serialize"}
"""Without these nothing can be written, put in its place, or read back; all others
serve durability or tidiness."""

LOST = {errno.EIO, errno.ENOSPC, errno.EROFS}
"""What a flush of a file answers whose contents are not on the disk."""


class Call(NamedTuple):
    name: str
    of: str
    """A file, or a folder."""

    number: int
    """It is so manieth of its name among those of the saves."""


class Disk:
    """Counts the calls of saves, and fails one of them."""

    def __init__(self, failing: Call | None = None, error: int = 0) -> None:
        self.failing, self.error = failing, error
        self.calls: list[Call] = []
        self.saving = threading.local()
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def meet(self, name: str, place: Any) -> None:
        """Raises where this call is the one that fails."""
        thread = threading.current_thread().name
        if not (
            thread.startswith(("save", "read back"))
            or getattr(self.saving, "now", False)
        ):
            return
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
def answering(disk: Disk) -> Iterator[None]:
    """Inside the block the system is asked through `disk`."""
    with pytest.MonkeyPatch.context() as patch:

        def through(module: Any, name: str) -> None:
            real, known = (
                getattr(module, name),
                name if module in (os, fcntl) else "io.open",
            )

            @wraps(real)
            def asked(*arguments: Any, **named: Any) -> Any:
                disk.meet(known, arguments[0] if arguments else ".")
                return real(*arguments, **named)

            patch.setattr(module, name, asked)

        for module, names in CALLS.items():
            for name in names:
                through(module, name)

        from safetensors import SafetensorError
        from safetensors import torch as safetensors

        save_file = safetensors.save_file

        def serialize(tensors: Any, path: Path, **named: Any) -> None:
            try:
                disk.meet("serialize", path)
            except OSError as error:
                raise SafetensorError(
                    f"I/O error: {error.strerror} (os error {error.errno})"
                ) from None
            save_file(tensors, path, **named)

        patch.setattr(safetensors, "save_file", serialize)
        start = SaveCallback._start_save

        def start_save(*arguments: Any, **named: Any) -> bool:
            disk.saving.now = True
            try:
                return start(*arguments, **named)
            finally:
                disk.saving.now = False

        patch.setattr(SaveCallback, "_start_save", start_save)
        patch.setattr(writing, "_warned", set(), raising=False)
        yield


def calls_of_a_run(folder: Path) -> list[Call]:
    disk = Disk()
    with answering(disk):
        small.go_on(folder)
    return disk.calls


def contents(folder: Path) -> dict[str, bytes]:
    """The weights and the states of a run."""
    files = [*folder.glob("*.safetensors"), *folder.glob("state/*/*")]
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in files
        if file.is_file()
    }


def serves_tidiness(call: Call, error: int) -> bool:
    """Whether a run must not end by this answer."""
    if call.name == "fsync":
        return call.of == "folder" or error not in LOST
    return call.name not in NEEDED


def check(call: Call, error: int, folder: Path, whole: dict[str, bytes]) -> None:
    what = f"{call}: {errno.errorcode[error]}"
    ended = ""
    with answering(Disk(call, error)):
        try:
            small.go_on(folder)
        except RunError as failed:
            ended = str(failed)
            assert os.strerror(error) in ended, what
    assert not (ended and serves_tidiness(call, error)), (
        f"{what} ended the run: {ended}"
    )
    assert all(
        verify(state) is None for state in checkpoint_folders(folder / "state")
    ), what
    small.go_on(folder)
    found = contents(folder)
    assert {name: found.get(name) for name in whole} == whole, what


@pytest.fixture(scope="module")
def table(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[Call], dict[str, bytes]]:
    """The calls of a run's saves, and what it ends with."""
    folder = tmp_path_factory.mktemp("calls") / "run"
    return calls_of_a_run(folder), contents(folder)


def test_the_calls_of_a_save_are_seen(table) -> None:
    names = {call.name for call in table[0]}
    assert {
        "open",
        "fsync",
        "replace",
        "mkdir",
        "unlink",
        "rmdir",
        "chmod",
        "statvfs",
        "flock",
    } <= names
    assert {("fsync", "file"), ("fsync", "folder")} <= {
        (call.name, call.of) for call in table[0]
    }


@pytest.mark.slow
def test_no_call_for_durability_or_tidiness_ends_a_run(table, tmp_path: Path) -> None:
    """The first of each kind of call, and the last."""
    calls, whole = table
    number = 0
    for error, in_order in ((errno.EINVAL, calls[::-1]), (errno.EPERM, calls)):
        of_kind = {
            (call.name, call.of): call
            for call in in_order
            if serves_tidiness(call, error)
        }
        assert len(of_kind) >= 6
        for call in of_kind.values():
            number += 1
            check(call, error, tmp_path / str(number), whole)


@pytest.mark.slow
def test_every_answer_to_each_kind_of_call_of_a_save(table, tmp_path: Path) -> None:
    """To calls of that kind from the first to the last."""
    calls, whole = table
    kinds: dict[tuple[str, str], list[Call]] = {}
    for call in calls:
        kinds.setdefault((call.name, call.of), []).append(call)
    for number, (of_kind, (turn, error)) in enumerate(
        product(kinds.values(), enumerate(ERRORS))
    ):
        call = of_kind[turn * (len(of_kind) - 1) // (len(ERRORS) - 1)]
        check(call, error, tmp_path / str(number), whole)
