"""Validation and stops in whole jobs: they change nothing of the training, and a
broken-off run ends the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.network_files import same_tensors
from tests.running import check_every, lines, losses, run_job
from toolkit.config import JobContext, load_job
from toolkit.errors import Interrupted
from toolkit.extension import discover
from toolkit.files.log import shown
from toolkit.train.validation import Validator

LOW_ENOUGH = {"metric": "validation/loss", "below": 100, "smooth": 3}


@pytest.fixture
def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> Callable[..., str]:
    """Runs a job in this process; what it said. With `stop_in` that run folder is asked
    to stop after one step."""
    monkeypatch.chdir(tmp_path)

    def start(path: Path, stop_in: Path | None = None) -> str:
        if stop_in:
            (stop_in / "control").mkdir(parents=True, exist_ok=True)
            (stop_in / "control" / "stop").touch()
        with shown(), suppress(Interrupted):
            run_job(path)
        return capsys.readouterr().out

    return start


def status(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.mark.slow
def test_a_run_is_the_same_with_and_without_validation(
    start, write_job, trainer, make_pictures, tmp_path
) -> None:
    data = make_pictures(tmp_path / "data", "a", "b", "c")
    references = make_pictures(
        tmp_path / "references", "x", size=(64, 64), captions=False
    )
    own = {
        "folder_path": str(make_pictures(tmp_path / "val", "x", size=(64, 64))),
        "control_path": str(references),
        "every": 2,
    }
    network = {"type": "lora", "linear": 4, "linear_alpha": 4, "dropout": 0.3}
    train = {"steps": 5, "ema_config": {"use_ema": True, "ema_decay": 0.5}}
    start(write_job(trainer(data, network=network, train=train), name="plain"))
    start(
        write_job(
            trainer(data, network=network, train=train, validation=own), name="watched"
        )
    )
    plain, watched = (tmp_path / "output" / name for name in ("plain", "watched"))
    assert losses(plain) == losses(watched)
    assert same_tensors(plain / "plain.safetensors", watched / "watched.safetensors")
    for file in ("weights", "ema", "optimizer"):
        state = f"state/step_000000005/{file}.safetensors"
        assert same_tensors(plain / state, watched / state), file
    measured = lines(watched / "validation.jsonl")
    assert [line["step"] for line in measured] == [0, 2, 4, 5]
    assert len({line["validation/loss"] for line in measured}) == 4
    best = min(measured, key=lambda line: line["validation/loss"])
    assert status(watched)["best"] == {
        "step": best["step"], "loss": best["validation/loss"], "file": "watched_best.safetensors"
    }  # fmt: skip
    is_last = best["step"] == 5
    assert (
        same_tensors(
            watched / "watched.safetensors", watched / "watched_best.safetensors"
        )
        is is_last
    )


@pytest.mark.slow
def test_a_run_that_is_stopped_again_and_again_ends_in_the_same_bits(
    start,
    write_job,
    trainer,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_every(monkeypatch, 2)
    section = trainer(
        make_pictures(tmp_path / "data", "a", "b", "c", "d"),
        train={"steps": 40},
        validation={"every": 2, "fraction": 0.25, "timesteps": 2},
        stop_when=LOW_ENOUGH,
    )
    whole, broken = (tmp_path / name / "run" for name in ("whole", "broken"))
    start(write_job({**section, "training_folder": "whole"}, name="run"))
    section["training_folder"] = "broken"
    job = write_job(section, name="run")
    for _ in range(2):
        start(job, stop_in=broken)
    assert (status(broken)["status"], status(broken)["step"]) == ("stopped", 2)
    start(job)
    # Three validations: before step 1, at steps 2 and 4.
    assert [line["step"] for line in lines(whole / "validation.jsonl")] == [0, 2, 4]
    ended = status(whole)
    assert (ended["status"], ended["step"], ended["steps"]) == ("finished", 4, 40)
    assert ended["reason"].startswith("stop_when: the mean validation/loss of 3")
    assert losses(whole) == losses(broken)
    assert len(losses(whole)) == 4
    state = "state/step_000000004"
    for name in (
        "validation.jsonl",
        f"{state}/state.json",
        f"{state}/weights.safetensors",
        "run_best.safetensors",
    ):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    assert status(broken)["best"] == status(whole)["best"]

    assert "is complete at step 4: nothing to do" in start(job)
    assert status(broken)["status"] == "finished"
    start(write_job({**section, "stop_when": {**LOW_ENOUGH, "smooth": 4}}, name="run"))
    assert (status(broken)["status"], status(broken)["step"]) == ("finished", 6)


@pytest.mark.slow
def test_what_is_held_out_is_neither_trained_on_nor_counted(
    start, write_job, trainer, make_pictures, tmp_path
) -> None:
    data = make_pictures(tmp_path / "2_data", "a", "b", "c", "d")
    dataset = {"folder_path": str(data), "resolution": [32, 64]}
    section = trainer(
        datasets=[dataset],
        train={"steps": 0, "epochs": 1},
        validation={"fraction": 0.5},
    )
    job = write_job(section, name="held")
    plan = (
        load_job(job, discover().find_config)
        .processes[0]
        .section.plan(JobContext("held"))
    )
    assert (plan.samples_per_epoch, plan.optimizer_steps, plan.datasets[0].images) == (
        2 * 2 * 2,
        8,
        2,
    )
    assert "validation: 2 images held out, not trained on (2_data/" in plan.render()
    # 2 images at 2 sizes and 4 noise levels
    assert "16 forward passes each time" in plan.render()
    assert "latents and text embeddings of 4 items are ready" in start(job)
    assert len(losses(tmp_path / "output" / "held")) == 8


@pytest.mark.slow
def test_the_next_process_runs_after_a_stop_and_both_are_skipped_then(
    start,
    write_job,
    trainer,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_every(monkeypatch, 3)
    data = make_pictures(tmp_path / "data", "a")
    low = {"below": 100, "smooth": 1}
    first = trainer(data, name="first", train={"steps": 50}, stop_when=low)
    second = trainer(data, name="second", train={"steps": 1})
    job = write_job(first, second, name="two")
    folders = [tmp_path / "output" / "two" / name for name in ("first", "second")]
    start(job, stop_in=folders[0])
    assert not folders[1].exists()  # a person asked for the end of the job
    start(job)
    ends = [(status(folder)["status"], status(folder)["step"]) for folder in folders]
    assert ends == [("finished", 3), ("finished", 1)]
    again = start(job)
    assert [line.split(":")[0] for line in again.splitlines()] == [
        "process 1 of 2, first",
        "process 2 of 2, second",
    ]
    (folders[0] / "first.safetensors").unlink()
    start(job)
    # written again from the state; the second is as it was
    assert (folders[0] / "first.safetensors").is_file()
    assert [
        (status(folder)["status"], status(folder)["step"]) for folder in folders
    ] == ends


@pytest.mark.slow
def test_a_run_whose_validation_loss_does_not_fall_any_more_is_ended(
    start,
    write_job,
    trainer,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The losses rise from step 3 on; the run ends at the same step with a stop by hand
    in between."""
    validated = [f"v{index}" for index in range(9)]
    section = trainer(
        make_pictures(tmp_path / "data", "a"),
        train={"steps": 24, "lr": 1e-5},
        validation={
            "folder_path": str(make_pictures(tmp_path / "val", *validated)),
            "every": 1,
            "timesteps": 1,
        },
        stop_when={"metric": "validation/loss"},
    )

    at_level = Validator._at_level

    def rising(*batch) -> tuple[float, torch.Tensor]:
        done = [
            len(lines(path))
            for path in Path().glob(
                f"{section['training_folder']}/run/validation.jsonl"
            )
        ]
        loss, x0_BCHW = at_level(*batch)
        return loss + 0.2 * max(0, sum(done) - 3), x0_BCHW

    monkeypatch.setattr(Validator, "_at_level", rising)
    ends = []
    for name in ("broken", "whole"):
        section["training_folder"], folder = name, tmp_path / name / "run"
        job = write_job(section, name="run")
        if name == "broken":
            start(job, stop_in=folder)
            assert status(folder)["status"] == "stopped"
        start(job)
        ends.append(
            (status(folder)["step"], (folder / "validation_images.jsonl").read_bytes())
        )
        assert status(folder)["status"] == "finished" and status(folder)["step"] < 12
        assert status(folder)["reason"].startswith(
            "stop_when: at 95% confidence no later step will be better than st"
        )
        assert "nothing to do" in start(job)
    assert ends[0] == ends[1]


def test_a_dry_run_says_that_a_run_can_never_be_ended_so(
    write_job, trainer, make_pictures, tmp_path: Path
) -> None:
    data = make_pictures(tmp_path / "data", "a", "b", "c", "d")
    section = trainer(
        data,
        train={"steps": 40},
        validation={"fraction": 0.5, "every": 10},
        stop_when={"metric": "validation/loss"},
    )
    plan = (
        load_job(write_job(section), discover().find_config)
        .processes[0]
        .section.plan(JobContext("job"))
    )
    never = "warning: stop_when will never stop this run: it needs "
    notes = [note.removeprefix(never) for note in plan.notes if note.startswith(never)]
    assert notes == [
        "8 validation images or more, and there are 2",
        "5 validations after the best one and before the end, and there are 3 in all. Lower 'validation.every'",
    ]
