"""A process that dies at any write of a save: the next one goes on, and ends in the
same bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.faults.conftest import contents, without_times
from tests.faults.nursery import Nursery
from toolkit.train.checkpoint_store import (
    checkpoint_dir,
    checkpoint_folders,
    latest_checkpoint,
)

RUN = "tests.faults.small"


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """Where the runs are: in memory where that is possible, because every save waits
    for the disk many times."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(
        dir=memory if os.access(memory, os.W_OK) else tmp_path
    ) as folder:
        yield Path(folder)


@pytest.fixture
def start(nursery: Nursery, runs: Path):
    """Runs the small run in a folder, with faults; gives its exit code."""

    def run(folder: str, *faults) -> int:
        child = nursery.fork([runs / folder], runs, "child", faults, main=RUN)
        code = child.wait(30)
        assert code in (0, 99), child.output
        return code

    return run


def result(folder: Path) -> dict[str, bytes]:
    """Every file but those that hold times, and what was moved aside."""
    found = {
        path: text
        for path, text in contents(folder).items()
        if not path.startswith("superseded/")
    }
    status = json.loads(found.pop("run.json"))
    assert status["status"] == "finished"
    lines = [without_times(line) for line in found.pop("metrics.jsonl").splitlines()]
    return found | {"metrics": json.dumps(lines).encode()}


@pytest.mark.parametrize(
    ("thread", "half"),
    [
        pytest.param(
            "save", False, id="save-before", marks=pytest.mark.slow
        ),  # 60 of them
        pytest.param("save", True, id="save-half way", marks=pytest.mark.slow),
        pytest.param(
            "MainThread", False, id="MainThread-before", marks=pytest.mark.slow
        ),
        pytest.param("MainThread", True, id="MainThread-half way"),
    ],
)
def test_death_at_every_write_ends_in_the_same_bytes(
    start, runs: Path, thread: str, half: bool
) -> None:
    assert start("whole", ("leave_at_write", thread, 0, half)) == 0
    [writes] = json.loads((runs / "writes").read_text())
    assert writes > (3 if half else 60 if thread == "save" else 12), (
        "the hook sees the writes no longer"
    )
    expected = result(runs / "whole")
    assert {
        "toy.safetensors",
        "toy_000000004.safetensors",
        "state/step_000000004/MANIFEST.json",
    } <= expected.keys()
    # The second save writes what the first one does, and removes what that left.
    for call in range(writes // 2 if thread == "save" else 1, writes + 1):
        folder = runs / f"killed_{call}"
        assert start(folder.name, ("leave_at_write", thread, call, half)) == 99, call
        root = checkpoint_dir(folder)
        assert latest_checkpoint(root) or not checkpoint_folders(root), (
            f"write {call}: no good state is left"
        )
        assert start(folder.name) == 0
        assert result(folder) == expected, f"write {call} of {writes}"


@pytest.mark.slow
def test_death_at_every_write_of_two_starts_in_a_row(start, runs: Path) -> None:
    """What the second start has to clean up is itself interrupted."""
    assert start("whole") == 0
    expected = result(runs / "whole")
    for call in (4, 10, 16):
        folder = f"killed_{call}"
        assert start(folder, ("leave_at_write", "save", call, True)) == 99
        start(folder, ("leave_at_write", "MainThread", call // 3 + 1, True))
        start(folder, ("leave_at_write", "save", 2 * call, False))
        assert start(folder) == 0
        assert result(runs / folder) == expected, call
