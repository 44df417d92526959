"""The index says what `list_runs` says, whatever happens in the folder, and reads only
what has changed."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from random import Random

import pytest

from toolkit.train import run_index
from toolkit.train.lock import run_lock
from toolkit.train.run_index import RunIndex
from toolkit.train.run_reader import RunStatus, list_runs, read_run


def write(folder: Path, **status: object) -> None:
    """A run's status, written in place."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(
        json.dumps({"status": "finished", "step": 1, **status})
    )


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were read."""
    found: list[Path] = []

    def counted(folder: Path):
        found.append(folder)
        return read_run(folder)

    monkeypatch.setattr(run_index, "read_run", counted)
    return found


def let_age(folder: Path) -> None:
    """All files as if they had been written an hour ago."""
    then = time.time() - 3600
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (then, then))


def test_only_what_has_changed_is_read_again(tmp_path: Path, read: list[Path]) -> None:
    for name in ("a", "b/first", "b/second"):
        write(tmp_path / name)
    (tmp_path / "a" / "samples").mkdir()
    let_age(tmp_path)
    index = RunIndex(tmp_path)
    first = index.runs()
    assert [run.folder for run in first] == [
        tmp_path / name for name in ("a", "b/first", "b/second")
    ]
    read.clear()
    assert index.runs() is first and read == []
    write(tmp_path / "b" / "first", step=2)
    assert index.runs()[1].step == 2 and read == [tmp_path / "b" / "first"]
    read.clear()
    assert index.runs()[1].step == 2 and read == [tmp_path / "b" / "first"], (
        "just written: it may be once more"
    )


def test_what_is_written_within_one_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    index, now = RunIndex(tmp_path), time.time()
    for step in range(5):  # of one size, in one file, at one time
        write(tmp_path / "a", step=step)
        os.utime(tmp_path / "a" / "run.json", (now, now))
        assert [run.step for run in index.runs()] == [step]


def test_a_run_is_running_while_its_lock_is_held(tmp_path: Path) -> None:
    write(tmp_path / "a", status="running")
    index = RunIndex(tmp_path)
    with run_lock(tmp_path / "a"):
        let_age(tmp_path)
        assert (
            [run.status for run in index.runs()]
            == [RunStatus.RUNNING]
            == [run.status for run in index.runs()]
        )
        before = (tmp_path / "a" / "run.lock").read_bytes()
    # as a kill leaves it: nothing is written
    (tmp_path / "a" / "run.lock").write_bytes(before)
    let_age(tmp_path)
    assert [run.status for run in index.runs()] == [RunStatus.KILLED]


@pytest.mark.parametrize("seed", range(4))
def test_it_says_what_a_list_of_all_says(tmp_path: Path, seed: int) -> None:
    chance, index = Random(seed), RunIndex(tmp_path)
    for _ in range(60):
        name = chance.choice(
            ["a", "b", "b/first", "b/second", "c/first", "d", "e.old-1", "_cache/x"]
        )
        folder = tmp_path / name
        match chance.randrange(7):
            case 0 | 1:
                write(folder, step=chance.randrange(10), name=chance.choice("xyz"))
            case 2:
                shutil.rmtree(folder, ignore_errors=True)
            case 3:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "run.json").write_text(
                    chance.choice(["{", '{"run": 1}', "[]"])
                )
            case 4:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "config.yaml").write_text("x")
            case 5:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "run.lock").touch()
            case 6:
                let_age(tmp_path)
        assert index.runs() == list_runs(tmp_path)


def test_a_folder_that_is_not_there_has_no_runs(tmp_path: Path) -> None:
    assert RunIndex(tmp_path / "nowhere").runs() == ()
