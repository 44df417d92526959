"""Who watches a run: a whole job whose curves and samples are drawn by both
trackers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import running
from tests.event_files import curves
from tests.running import lines
from toolkit.train.callbacks.standard import dataset_of

KEY = "c0ffee99" * 5


@pytest.fixture
def run_job(
    trainer, make_pictures, write_job, tmp_path: Path, monkeypatch
) -> Callable[[int], None]:
    """Runs a job of so many steps in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    # the machine may be busy
    monkeypatch.setattr("toolkit.train.callbacks.trackers.WAIT_AT_END_S", 60.0)
    photos = make_pictures(tmp_path / "photos", "a", "b", "c")

    def run(steps: int) -> None:
        section = trainer(
            photos,
            train={"steps": steps},
            name="first",
            save={"dtype": "float32", "save_every": 2},
            sample={
                "sample_every": 2,
                "sample_steps": 1,
                "width": 64,
                "height": 64,
                "guidance_scale": 1,
                "prompts": ["a", "b"],
            },
            validation={"fraction": 0.34, "every": 2},
            logging={
                "use_wandb": True,
                "logging_dir": "tb",
                "log_every": 2,
                "log_config": True,
                "wandb_api_key": KEY,
            }
            | {"report": True},
        )
        running.run_job(write_job(section))

    return run


@pytest.mark.slow
def test_curves_and_samples_are_drawn_without_a_double_over_a_resume(
    run_job, tmp_path: Path
) -> None:
    folder = tmp_path / "output" / "job" / "first"
    run_job(4)
    wandb_run = (folder / "wandb" / "run_id").read_text()
    # as if it had been killed before it saved a second time
    shutil.rmtree(folder / "state" / "step_000000004")
    run_job(5)

    drawn = curves(tmp_path / "tb" / "job" / "first")
    rows = lines(folder / "metrics.jsonl")
    assert [line["step"] for line in rows] == [1, 2, 3, 4, 5]
    for name, key in (
        ("loss/current", "loss"),
        ("grad_norm", "grad_norm"),
        ("lr", "lr"),
    ):
        assert drawn[name] == pytest.approx(
            {line["step"]: line[key] for line in rows}
        ), name
    assert (
        list(drawn["loss/average"])
        == list(drawn["time/step_s"])
        == list(drawn["skipped"])
        == [1, 2, 3, 4, 5]
    )
    assert {
        step
        for name, curve in drawn.items()
        if name.startswith("loss_by_t/")
        for step in curve
    } == {2, 4, 5}
    assert list(drawn["samples/0"]) == list(drawn["samples/1"]) == [0, 2, 4, 5]
    validated = lines(folder / "validation.jsonl")
    name = next(name for name in validated[0] if name != "step")
    assert list(drawn[name]) == [line["step"] for line in validated] == [0, 2, 4, 5]

    assert (folder / "wandb" / "run_id").read_text() == wandb_run
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 2
    assert (
        len(list((folder / "wandb").glob("offline-run-*/files/media/images/samples/*")))
        == 10
    )
    # behind the status of the end and all that was saved
    report = (folder / "report.html").read_text()
    assert (
        ">finished<" in report and "5 steps" in report and "first.safetensors" in report
    )
    files = [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and path.name != "job.yaml"
    ]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    # OMP_NUM_THREADS is set in tests
    assert "threads of the CPU: " not in (folder / "log.txt").read_text()


def test_the_dataset_of_an_image_is_the_nearest_folder_above_it_as_the_job_writes_it(
    monkeypatch, tmp_path
) -> None:
    monkeypatch.chdir(tmp_path)
    datasets = [
        SimpleNamespace(folder_path=name)
        for name in ("photos", "photos/close", "./photos/close", "")
    ]
    find = dataset_of(SimpleNamespace(datasets=datasets))
    images = (
        "photos/a.png",
        str(tmp_path / "photos/close/b/c.png"),
        "photos_b/a.png",
        "",
    )
    assert list(map(find, images)) == ["photos", "photos/close", "", ""]
