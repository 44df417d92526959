"""Disks that are full, small or read-only: a clear line, nothing half written, and the
run goes on later."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Job, contents
from toolkit.train.checkpoint_store import checkpoint_folders, verify


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """Makes a folder read-only for everyone, root as well."""
    mounted = []

    def mount(folder: Path) -> None:
        for options in (["--bind", folder, folder], ["-o", "remount,ro,bind", folder]):
            result = subprocess.run(["mount", *map(str, options)], capture_output=True)
            if result.returncode:
                pytest.skip(
                    f"nothing can be mounted here: {result.stderr.decode().strip()}"
                )
            mounted.append(folder)

    yield mount
    if mounted:
        subprocess.run(["umount", str(mounted[0])], check=True)


@pytest.fixture
def small_disk(job: Job) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many bytes as the job's output folder, or gives it another
    size."""
    folder = job.cwd / "output"
    folder.mkdir()
    mounted = []

    def mount(size: int) -> Path:
        options = f"size={size}" + (",remount" if mounted else "")
        result = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
            capture_output=True,
        )
        if result.returncode:
            pytest.skip(
                f"no disk can be mounted here: {result.stderr.decode().strip()}"
            )
        mounted.append(size)
        return folder

    yield mount
    if mounted:
        job.end()
        subprocess.run(["umount", str(folder)], check=True)


def nothing_is_half_written(folder: Path) -> bool:
    """Every state verifies, and no temporary file is left."""
    left = [path for path in folder.rglob("*") if ".tmp" in path.name]
    return left == [] and all(
        verify(path) is None for path in checkpoint_folders(folder / "state")
    )


@pytest.mark.slow
def test_a_disk_that_does_not_say_its_free_space_is_planned_and_used(
    job: Job,
) -> None:
    job.change(train__steps=2, sample=None, model__quantize=True)
    faults = [("no_free_space_told",)]
    plan = job.run("--dry-run", faults=faults)
    assert "(an unknown amount free)" in plan and "too little" not in plan
    said = job.run(faults=faults)
    assert "transformer: kept in" in said and job.states() == [2]


@pytest.mark.slow
def test_a_file_that_may_not_grow_ends_the_run_with_a_line_and_loses_nothing(
    job: Job,
) -> None:
    """The limit lets the cache and the network file through and stops the state's
    largest file."""
    job.change(train__steps=2, sample=None)
    job.run()
    job.change(train__steps=4)
    before = contents(job.folder / "state")
    largest = max(path.stat().st_size for path in job.folder.glob("state/*/*"))
    said = job.run(faults=[("largest_file", largest - 1)], code=1)
    assert "cannot be written" in said and str(Path("output/job/state")) in said
    assert contents(job.folder / "state") == before and nothing_is_half_written(
        job.folder
    )
    assert job.status() == "failed"
    job.run()
    assert job.steps() == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_disk_without_what_durability_needs_ends_no_run(job: Job) -> None:
    """It is said at the start, once, and all saves are made."""
    job.change(train__steps=2, sample=None)
    said = job.run(faults=[("no_flushing_of_folders",), ("no_modes",)])
    for warning in (
        "output/job: Invalid argument: it is not flushed",
        "output/job: Operation not permitted: only the owner may read new safetensors files",
    ):
        assert said.count(warning) == 1
        assert said.index(warning) < said.index("step 1 of 2")
    assert job.states() == [2] and nothing_is_half_written(job.folder)


def test_a_disk_without_room_for_a_save_is_refused_before_the_model_is_loaded(
    job: Job,
) -> None:
    """As where a quota is used up, of which the free space says nothing."""
    job.change(sample=None)
    said = job.run(
        faults=[("fail", "toolkit.train.checkpoint_store:fsync", 1, errno.EDQUOT)],
        code=1,
    )
    ended = rf"a trial save of [\d.]+ kB ended with '{os.strerror(errno.EDQUOT)}'\. Free some space, or give "
    assert re.search(f"^output/job: cannot be written: {ended}", said, re.M)
    assert "training_seed" not in said and list(job.folder.glob(".*")) == []


@pytest.mark.slow
def test_a_full_disk_is_left_with_a_line_and_the_run_goes_on_when_there_is_room(
    job: Job, small_disk, same
) -> None:
    """About 1.3 MB are needed in all: a disk of 700 kB fills up in the middle."""
    small_disk(700_000)
    child = job.start()
    assert child.wait() in (1, 2), child.output
    assert "Traceback" not in child.output, child.output
    assert any(
        words in child.output
        for words in ("cannot be written", "could not be saved", "free")
    ), child.output
    assert nothing_is_half_written(job.folder)
    small_disk(50_000_000)
    job.run()
    same()


@pytest.mark.slow
def test_when_space_runs_short_during_the_run_older_states_go_and_it_is_said(
    job: Job, small_disk
) -> None:
    """Ballast leaves room for the first two states and not for 2.5 times a third."""
    disk = small_disk(50_000_000)
    job.change(train__steps=4)
    job.run()
    assert job.states() == [2, 4]
    state = sum(
        path.stat().st_size
        for path in (job.folder / "state" / "step_000000004").iterdir()
    )
    free = shutil.disk_usage(disk).free
    with (disk / "ballast").open("wb") as file:
        file.write(bytes(free - int(2.2 * state)))
    job.change(train__steps=6, sample=None)
    child = job.start()
    assert child.wait() in (0, 1, 2), child.output
    assert "Traceback" not in child.output
    if child.code == 0:
        assert "disk space is short: removed" in child.output
        assert job.states()[-1] == 6
    assert nothing_is_half_written(job.folder)


@pytest.mark.slow
def test_a_dataset_that_may_not_be_written_to_is_enough(
    job: Job, pictures: Path, read_only, same
) -> None:
    """Nothing is ever written beside the user's images."""
    read_only(pictures)
    job.run()
    same()


def test_an_output_folder_that_may_not_be_written_to_is_one_line(
    job: Job, read_only
) -> None:
    (job.cwd / "output").mkdir()
    read_only(job.cwd / "output")
    said = job.run(code=1)
    assert "output/job" in said and os.strerror(errno.EROFS) in said


@pytest.mark.slow
def test_a_tool_whose_file_may_not_grow_ends_with_a_line_and_leaves_nothing(
    job: Job, tiny_model: Path
) -> None:
    job.change(train__steps=2)
    job.run()
    lora, before = job.folder / "job.safetensors", contents(job.cwd)
    commands = [
        ("convert", lora, "made/a.safetensors", "--to", "kohya", "--model", tiny_model),
        ("merge", "--base", tiny_model, "--lora", lora, "--output", "made/model"),
        ("diagrams", job.folder, "--output", "made/graph"),
        ("report", job.folder, "--output", "made/a.html"),
        ("publish", job.folder, "--repo", "me/cat", "--preview", "made/page"),
    ]
    for command in commands:
        child = job.nursery.fork(
            list(map(str, command)), job.cwd, command[0], [("largest_file", 600)]
        )
        assert re.search(
            f"made.*: cannot be written: .*{os.strerror(errno.EFBIG)}",
            child.ends_with(1),
        ), child.output
    assert [path for path in (job.cwd / "made").rglob("*") if path.is_file()] == []
    assert before.items() <= contents(job.cwd).items()
