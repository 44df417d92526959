"""The same images under another mount, in a folder of another name, with other names,
or in another order: a run goes on with the same bits. The comparison is in
tests/toolkit/data/scan/test_moved.py."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.faults.conftest import Job, draw_pictures
from tests.faults.nursery import Nursery


def two_folders(cwd: Path) -> list[dict]:
    """Two datasets that are not trained alike, the first one at two sizes and
    mirrored."""
    one, two = (
        draw_pictures(cwd / "disk" / "maya", "a", "b", "c", "d"),
        draw_pictures(cwd / "disk" / "2_otto", "k", "l", "m"),
    )
    return [
        {"folder_path": str(one), "resolution": [64, 96], "flip_x": True},
        {"folder_path": str(two), "resolution": 64, "caption_dropout_rate": 0.3},
    ]


@pytest.fixture(scope="module")
def unmoved(
    nursery: Nursery, tmp_path_factory: pytest.TempPathFactory, small_section: dict
) -> Job:
    """Five steps without an interruption. Read only."""
    cwd = tmp_path_factory.mktemp("unmoved")
    made = Job(nursery, cwd, copy.deepcopy(small_section))
    prepare(made)
    made.change(train__steps=5)
    made.run()
    return made


def prepare(job: Job) -> None:
    """A third of the images is held out, chosen by their names."""
    job.section |= {
        "datasets": two_folders(job.cwd),
        "sample": None,
        "validation": {"fraction": 0.3, "timesteps": 1},
    }


def other_mount(job: Job) -> None:
    (job.cwd / "disk").rename(job.cwd / "volume")
    for entry in job.section["datasets"]:
        entry["folder_path"] = entry["folder_path"].replace("/disk/", "/volume/")


# Each of these moves the images of a job, and returns the flags of its next start.


def other_file_names(job: Job) -> tuple[str, ...]:
    """In the same folder, in the opposite order."""
    folder = Path(job.section["datasets"][0]["folder_path"])
    for old, new in ("az", "by", "cx", "dw"):
        for suffix in (".png", ".txt"):
            (folder / f"{old}{suffix}").rename(folder / f"{new}{suffix}")
    return ()


def other_order(job: Job) -> tuple[str, ...]:
    job.section["datasets"].reverse()
    return ()


def mapped_mount(job: Job) -> tuple[str, ...]:
    (job.cwd / "disk").rename(job.cwd / "volume")
    return ("--map", f"{job.cwd}/disk={job.cwd}/volume")


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_bits(job: Job, unmoved: Job) -> None:
    prepare(job)
    job.change(train__steps=2)
    job.run()
    flags: tuple[str, ...] = ()
    for steps, move in enumerate((other_file_names, other_order, mapped_mount), 3):
        job.change(train__steps=steps)
        flags += move(job)
        said = job.run(*flags)
        assert ("the dataset has moved: its 5 images are those of the run" in said) == (
            move is not other_order
        ), move
        assert "dataset has changed" not in said, move
    assert job.metrics() == unmoved.metrics()
    of_last_step = [each.lines("validation.jsonl")[-1] for each in (job, unmoved)]
    assert of_last_step[0] == of_last_step[1]
    ours, theirs = (
        load_file(each.folder / "job.safetensors") for each in (job, unmoved)
    )
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not ours[name].equal(theirs[name])] == []
    assert "is complete at step 5: nothing to do" in job.run(*flags)


@pytest.mark.slow
def test_the_plan_says_that_the_dataset_has_moved(job: Job) -> None:
    prepare(job)
    del job.section["validation"]
    job.change(train__steps=1)
    job.run()
    other_file_names(job)
    other_mount(job)
    moved = "the dataset has moved, but its images are the same"
    assert f"complete at step 1: nothing to do; {moved}" in job.run("--dry-run")
    job.change(train__steps=2)
    assert f"resumes at step 1 of 2; {moved}" in job.run("--dry-run")
    shutil.rmtree(job.cwd / "volume" / "maya")
    draw_pictures(job.cwd / "volume" / "maya", "b", "c", "d", "e")
    said = job.run(code=2)
    assert "datasets[0].folder_path: " in said and "this changes the result" in said
    said = job.run("--allow-change")
    assert (
        f"the dataset has changed: 1 added ({job.cwd}/volume/maya/e.png); 1 removed"
        in said
    )
    (state,) = job.folder.glob("state/step_*2")
    assert json.loads((state / "state.json").read_text())["settings"]["datasets"][0][
        "folder_path"
    ].endswith("maya")
