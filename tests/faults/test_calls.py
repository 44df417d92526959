"""Every kind of call to the system that a kept model, a table with pictures, and a state
of rows make, answered with every error that a disk may give.

A kept model ends no start, whatever fails: the weights are right, and so are those of
the next start. Anything else ends with an error that has the system's reason, and is
right once it is done again.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import distributed

from tests.faults.calls import Call, Disk, answering, each_kind, through
from tests.faults.conftest import contents
from tests.small_kept import small_start
from toolkit.errors import RunError
from toolkit.files import mapped, parquet
from toolkit.models.kept import kept_entries
from toolkit.system.distributed import ProcessGroup
from toolkit.system.sharded_param import RowShard
from toolkit.train.sharded_state import Rows, read_rows, write_rows

Work = Callable[[Path], Any]
"""Does something in a folder, and returns what has to be equal each time, or a function
that reads it."""


def done(work: Work, folder: Path, disk: Disk) -> Any:
    with answering(disk) as patch:
        patch.setattr(mapped, "_Map", through(disk, "mmap", mapped._Map))
        return work(folder)


def calls_of(work: Work, folder: Path) -> tuple[list[Call], Any]:
    disk = Disk()
    return disk.calls, done(work, folder, disk)


def start(folder: Path) -> dict[str, Any]:
    """Reads the kept model, or makes it; its tensors are mapped."""
    state = small_start(folder).state_dict()
    return {name: tensor.tolist() for name, tensor in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize("which", ["first", "second"])
def test_no_answer_to_a_kept_model_ends_a_start(
    tmp_path: Path, which: str, caplog: pytest.LogCaptureFixture
) -> None:
    made, expected = calls_of(start, tmp_path / "whole")
    calls = made
    if which == "second":
        calls, again = calls_of(start, tmp_path / "whole")
        assert again == expected
    assert {"open", "io.open", "stat", "lstat"} <= {call.name for call in calls}
    assert ("mmap" in {call.name for call in calls}) and (
        which == "second" or "fsync" in {call.name for call in calls}
    )
    for number, (call, error) in enumerate(each_kind(calls)):
        what, folder = f"{call}: {os.strerror(error)}", tmp_path / str(number)
        if which == "second":
            start(folder)
        caplog.clear()
        assert done(start, folder, Disk(call, error)) == expected, what
        said = [one for one in caplog.records if one.levelno >= logging.WARNING]
        assert len(said) <= 2, what
        assert start(folder) == expected, what
        assert len(kept_entries(folder)) <= 1, what


def unpacked(folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    parquet.unpack(folder.parent / "table.parquet", folder)
    return lambda: contents(folder)


def rows_of(folder: Path) -> Any:
    folder /= "again" if folder.exists() else "."  # each save has a new one
    folder.mkdir(exist_ok=True)
    shard = RowShard.of((3, 2), 0, 1)
    values = torch.arange(6.0).view(3, 2)
    write_rows(ProcessGroup(), folder, {"weights/a": Rows(values, shard)})
    found = read_rows(folder, {"weights/a": None}, ProcessGroup())
    return lambda: {name: tensor.tolist() for name, tensor in found.items()}


@pytest.fixture
def alone() -> Iterator[None]:
    """One process of one, which writes as one of several does."""
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def table(tmp_path: Path) -> None:
    """A table with two pictures."""
    pyarrow = pytest.importorskip("pyarrow")
    write_table = pytest.importorskip("pyarrow.parquet").write_table
    pictures = []
    for colour in ("red", "blue"):
        file = io.BytesIO()
        Image.new("RGB", (4, 4), colour).save(file, "PNG")
        pictures.append({"bytes": file.getvalue(), "path": None})
    rows = pyarrow.table({"image": pictures, "text": ["a", "b"]})
    write_table(rows, tmp_path / "table.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("work", [unpacked, rows_of])
def test_any_other_answer_is_an_error_with_its_reason(
    tmp_path: Path, table: None, alone: None, work: Work
) -> None:
    calls, result = calls_of(work, tmp_path / "whole")
    expected = result()
    assert len(calls) > 5 and expected
    for number, (call, error) in enumerate(each_kind(calls)):
        what, folder = f"{call}: {os.strerror(error)}", tmp_path / str(number)
        try:
            result = done(work, folder, Disk(call, error))
        except (OSError, RunError) as failed:
            assert os.strerror(error) in str(failed), what
        else:
            assert result() == expected, what
        assert work(folder)() == expected, what
