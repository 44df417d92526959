"""What every trainer on images promises: a dry run says what a start then does, and a
start that cannot work is refused before anything is written."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.dry_run import plan_job
from tests.running import run_job
from toolkit.config import load_job
from toolkit.errors import UserError
from toolkit.extension import discover
from toolkit.files.log import shown
from toolkit.plan import memory

TRAINERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sd_trainer": ({}, {"network": {"type": "lora", "linear": 8}}),
}
"""What is particular to a trainer, and a change that a resume cannot take. A part with
a trainer runs these tests too, with its own `trains`."""


@pytest.fixture(params=TRAINERS)
def trains(
    request: pytest.FixtureRequest,
    trainer,
    make_pictures,
    write_job,
    tmp_path: Path,
    monkeypatch,
) -> Callable[..., Path]:
    """The file of a job of this trainer, with these changes; `changed`: with the one
    that a resume cannot take."""
    own, impossible = TRAINERS[request.param]
    monkeypatch.chdir(tmp_path)
    return job_of(
        trainer,
        write_job,
        make_pictures(tmp_path / "data", "a", "b", "c", size=(40, 32)),
        own,
        impossible,
    )


def job_of(
    section: Callable[..., dict[str, Any]],
    write_job: Callable[..., Path],
    images: Path,
    own: dict[str, Any],
    impossible: dict[str, Any],
) -> Callable[..., Path]:
    """What `trains` gives. section: makes that of the trainer, for a folder of
    images."""

    def job(changed: bool = False, **changes: Any) -> Path:
        train = {"steps": 2, **changes.pop("train", {})}
        return write_job(
            section(
                images,
                **{**own, **(impossible if changed else {}), "train": train, **changes},
            )
        )

    return job


def planned(path: Path, **options: bool) -> dict[str, Any]:
    """The plan of a dry run with --memory, without which that of models from nothing is
    not measured."""
    return plan_job(
        load_job(path, discover().find_config), **options, memory=True
    ).to_json()["processes"][0]


def run(path: Path, **options: bool) -> None:
    with shown():
        run_job(path, **options)


def refused(path: Path) -> tuple[list[str], str]:
    """What the plan says, and the error of the start."""
    plan = planned(path)["will_not_start"]
    with pytest.raises(UserError) as error:
        run(path)
    return plan, str(error.value)


def files(folder: Path) -> dict[str, bytes]:
    """The contents of every file of a run but its lock and the copy of its output."""
    found = (
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.lock", "log.txt")
    )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_new_complete_changed_and_resumed(
    trains, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "output" / "job"
    found = planned(trains())
    assert (found["start"]["what"], found["will_not_start"], folder.exists()) == (
        "new",
        [],
        False,
    )
    assert found["memory"]["host_bytes"] > 3e8 and found["disk"]["there_bytes"] == 0
    run(trains())
    written = files(folder)
    found = planned(trains())
    assert (
        found["start"]["what"],
        found["start"]["step"],
        found["will_not_start"],
    ) == ("complete", 2, [])
    assert 0 < found["disk"]["there_bytes"] <= found["disk"]["needed_bytes"]
    capsys.readouterr()
    run(trains())
    assert "is complete at step 2: nothing to do" in capsys.readouterr().out
    plan, error = refused(trains(changed=True))
    assert (
        plan == [error]
        and "this cannot change: " in error
        and "was written with different settings" in error
    )
    plan, error = refused(trains(train={"lr": 0.5}))
    assert plan == [error] and "train.lr: " in error and "--allow-change" in error
    assert files(folder) == written
    found = planned(trains(train={"steps": 3}))
    assert (
        found["start"]["what"],
        found["start"]["step"],
        found["will_not_start"],
    ) == ("resumes", 2, [])
    assert planned(trains(), restart=True)["start"]["moves_aside"], (
        "finished work runs again"
    )
    assert (
        planned(trains(train={"steps": 3}), restart=True)["start"]["what"] == "resumes"
    )
    run(trains(train={"steps": 3}))
    assert (
        f"resuming from {Path('output/job/state/step_000000002')}"
        in capsys.readouterr().out
    )
    moved = planned(trains(changed=True), restart=True)["start"]
    assert (moved["what"], moved["moves_aside"]) == ("new", True)


def test_too_large_for_the_memory_or_the_disk(
    trains, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(memory, "free_host_memory", lambda: 10**8)
        plan, error = refused(trains())
        assert plan[0].startswith("the run needs ") and error.startswith(
            "memory: the run needs "
        )
        assert (
            "0.10 GB of main memory are free" in plan[0]
            and "0.10 GB of main memory are free" in error
        )
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(
        "toolkit.files.writing.shutil.disk_usage", lambda _: usage(0, 0, 10**3)
    )
    plan, error = refused(trains())
    assert plan == [error] and error.startswith(
        "training_folder: output/job has 1 kB free, one save of this job"
    )
    assert not files(tmp_path / "output" / "job")


def test_an_optimizer_that_fails_on_the_device_of_the_job(
    trains, tmp_path: Path
) -> None:
    said = r"^(train|optimizers\.vae)\.optimizer: torch\.optim\.SparseAdam with these arguments cannot"
    with pytest.raises(UserError, match=said):
        run(trains(train={"optimizer": "torch.optim.SparseAdam"}))
    assert not files(tmp_path / "output" / "job")


def test_a_device_that_is_not_there_is_refused_by_the_plan_and_the_start(
    trains, tmp_path: Path
) -> None:
    plan, error = refused(trains(device="cuda:99"))
    assert plan == [error] and error.startswith(
        "device: cuda:99: no such device can be used here."
    )
    assert not (tmp_path / "output").exists()
