"""Every kind of call to the system that a save makes, answered with every error that a
disk may give: a call that only durability or tidiness needs ends no run, and any other ends it
with a line, from which the run goes on."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults import calls, small
from tests.faults.calls import Call, Disk, each_kind
from toolkit.errors import RunError
from toolkit.train.callbacks.save import SaveCallback
from toolkit.train.checkpoint_store import checkpoint_folders, verify

NEEDED = {"open", "io.open", "mkdir", "replace", "rename", "stat", "lstat", "serialize"}
"""Without these nothing can be written, put in its place, or read back; all others
serve durability or tidiness."""

LOST = {errno.EIO, errno.ENOSPC, errno.EROFS}
"""What a flush of a file answers whose contents are not on the disk."""


saving = threading.local()
"""Whether this thread is within a save."""


def is_of_a_save() -> bool:
    thread = threading.current_thread().name
    return thread.startswith(("save", "read back")) or getattr(saving, "now", False)


@contextmanager
def answering(disk: Disk) -> Iterator[None]:
    """Inside the block the system is asked through `disk`, by safetensors too."""
    with calls.answering(disk) as patch:
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
            saving.now = True
            try:
                return start(*arguments, **named)
            finally:
                saving.now = False

        patch.setattr(SaveCallback, "_start_save", start_save)
        yield


def calls_of_a_run(folder: Path) -> list[Call]:
    disk = Disk(watches=is_of_a_save)
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
    with answering(Disk(call, error, is_of_a_save)):
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
    for number, (call, error) in enumerate(each_kind(calls)):
        check(call, error, tmp_path / str(number), whole)
