"""Rows that several processes write: what they hold, what cannot be read, and what
reading them may run."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import metadata

from tests.processes import in_processes
from toolkit.errors import RunError
from toolkit.system.distributed import ProcessGroup
from toolkit.system.sharded_param import RowShard
from toolkit.train import sharded_state
from toolkit.train.sharded_state import METADATA, Rows, read_rows, write_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8)


def _write(process_group: ProcessGroup, folder: Path) -> None:
    shard = RowShard.of((3, 2), process_group.rank, process_group.world_size)
    rows = torch.arange(6).view(3, 2)[shard.start : shard.stop]
    write_rows(
        process_group,
        folder,
        {f"weights/{dtype}": Rows(rows.to(dtype), shard) for dtype in DTYPES},
    )


def test_the_rows_of_two_processes_are_read_by_one_whatever_their_dtype(
    tmp_path: Path,
) -> None:
    assert in_processes(2, _write, tmp_path) == [None, None]
    found = read_rows(
        tmp_path, dict.fromkeys(f"weights/{dtype}" for dtype in DTYPES), ProcessGroup()
    )
    assert [tensor.dtype for tensor in found.values()] == [*DTYPES]
    assert all(
        torch.equal(tensor, torch.arange(6).view(3, 2).to(tensor.dtype))
        for tensor in found.values()
    )


def _write_and_read_own(process_group: ProcessGroup, folder: Path) -> list[list[int]]:
    _write(process_group, folder)
    shard = RowShard.of((3, 2), process_group.rank, process_group.world_size)
    name = "weights/torch.int64"
    rows: list[list[int]] = read_rows(folder, {name: shard}, process_group)[
        name
    ].tolist()
    return rows


def test_each_process_reads_its_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a member of an enum as Python 3.11.2 pickles it."""
    monkeypatch.setattr(
        metadata._MEM_FORMAT_ENCODING,
        "__reduce_ex__",
        lambda member, _: (getattr, (type(member), member.name)),
    )
    of_first, of_second = in_processes(2, _write_and_read_own, tmp_path)
    assert (of_first, of_second) == ([[0, 1], [2, 3]], [[4, 5]])


def _write_apart(process_group: ProcessGroup, folder: Path) -> None:
    sharded_state.SEEN_WITHIN_S = 0.1
    own = folder / str(process_group.rank)
    own.mkdir()
    _write(process_group, own)


def test_a_state_of_which_one_machine_has_a_part_is_none(tmp_path: Path) -> None:
    """Both would be told that it is whole, and the older ones removed."""
    error, _ = in_processes(2, _write_apart, tmp_path)
    assert isinstance(error, RunError)
    assert re.search(
        r"process 1 has written __1_0\.distcp of a state, and process 0 does not see it",
        str(error),
    )


@pytest.mark.parametrize(
    ("spoil", "says"), [(Path.unlink, "No such file"), (Path.touch, "EOFError")]
)
def test_a_file_of_rows_that_cannot_be_read_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    """As on a machine that does not see it, or an older one of that name."""
    in_processes(2, _write, tmp_path)
    file = tmp_path / "__1_0.distcp"
    file.write_bytes(b"")
    spoil(file)
    with pytest.raises(RunError, match=f"cannot be read: .*{says}") as found:
        read_rows(tmp_path, {"weights/torch.float32": None}, ProcessGroup())
    assert str(found.value).count("\n") == 0


class _Runs:
    """Runs a function where it is unpickled."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_metadata_that_names_anything_else_is_refused_before_it_runs(
    tmp_path: Path, protocol: int
) -> None:
    harmful = _Runs(os.mkdir, str(tmp_path / "ran"))
    (tmp_path / METADATA).write_bytes(
        pickle.dumps({"state_dict_metadata": harmful}, protocol)
    )
    with pytest.raises(
        RunError, match=r"\.metadata: names posix\.mkdir, .*Nothing of it was used"
    ):
        read_rows(tmp_path, {"weights/a": None}, ProcessGroup())
    assert [path.name for path in tmp_path.iterdir()] == [METADATA]
