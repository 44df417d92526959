"""`--seeds`: one run per seed, each in its own folder, and what they have in common."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.sweep import compared, read_seeds
from tests.running import lines
from toolkit.config import load_job
from toolkit.errors import ConfigErrors, UserError
from toolkit.extension import discover


@pytest.mark.parametrize(
    "text",
    [
        "1,x",
        "",
        "0",
        "1,,2",
        "1,1",
        "-3",
        "4294967296",
        "1 2",
        ",".join(map(str, range(1, 102))),
    ],
)
def test_other_texts_are_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(
        UserError,
        match=r"--seeds .*(write whole numbers from 1 on|give different seeds)",
    ):
        read_seeds(text)


def test_seeds_are_read_in_their_order() -> None:
    assert read_seeds("3, 1,2") == (3, 1, 2)


def test_runs_are_compared_by_loss_and_best_validation(tmp_path: Path) -> None:
    for seed, loss in ((1, 0.25), (2, 0.75)):
        (tmp_path / str(seed)).mkdir()
        status = {"loss": loss, "best": {"step": 4, "loss": loss / 2}}
        (tmp_path / str(seed) / "run.json").write_text(
            json.dumps(status), encoding="utf-8"
        )
    found = list(
        compared({1: [tmp_path / "1"], 2: [tmp_path / "2"], 3: [tmp_path / "3"]})
    )
    assert found == [
        f"seed 1: loss 0.2500, best validation loss 0.1250; {tmp_path / '1'}",
        f"seed 2: loss 0.7500, best validation loss 0.3750; {tmp_path / '2'}",
        f"seed 3: -; {tmp_path / '3'}",
        "loss of 2 runs: mean 0.5000, 0.2500 to 0.7500, standard deviation 0.3536",
        "best validation loss of 2 runs: mean 0.2500, 0.1250 to 0.3750, standard deviation 0.1768",
    ]


JOB = """job: extension
config:
  name: maya    # mine
  process:
    - type: sd_trainer    # trains
      {seed}device: cpu
      datasets: [{{folder_path: images}}]
      train: {{steps: 2}}
      model: {{name_or_path: Qwen/Qwen-Image}}
"""


@pytest.mark.parametrize(
    "seed", ["", "training_seed: 8    # lucky\n      ", "training_seed: 5\n      "]
)
def test_the_saved_config_has_name_and_seed_and_keeps_its_comments(
    seed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pictures
) -> None:
    monkeypatch.chdir(tmp_path)
    make_pictures(tmp_path / "images", "a")
    (tmp_path / "job.yaml").write_text(JOB.format(seed=seed), encoding="utf-8")
    config = load_job("job.yaml", discover().find_config, seed=5)
    assert (config.name, config.processes[0].section.training_seed) == ("maya_seed5", 5)
    (tmp_path / "saved.yaml").write_text(config.unexpanded_text, encoding="utf-8")
    saved = load_job("saved.yaml", discover().find_config)
    assert (saved.name, saved.processes[0].section.training_seed) == ("maya_seed5", 5)
    assert saved.processes[0].section == config.processes[0].section
    assert "# mine" in config.unexpanded_text and "# trains" in config.unexpanded_text


def test_a_job_that_trains_nothing_or_has_too_long_a_name_is_refused(
    tmp_path: Path, write_job
) -> None:
    tool = write_job({"type": "example", "folder_path": "."}, name="maya")
    with pytest.raises(UserError, match="no process of this job has a training_seed"):
        load_job(tool, discover().find_config, seed=5)
    with pytest.raises(ConfigErrors, match="is too long"):
        load_job(tool, discover().find_config, seed=5, name="x" * 210)


def test_it_takes_one_config(run_py: Callable, tmp_path: Path) -> None:
    for words in (
        ("a.yaml", "b.yaml", "--seeds", "1,2"),
        ("a.yaml", "--seeds", "1", "2"),
    ):
        done = run_py(*words)
        assert done.returncode == 2 and "commas between the seeds" in done.stderr
    assert "write whole numbers" in run_py("a.yaml", "--seeds", "one").stderr


@pytest.mark.slow
def test_each_seed_has_a_run_of_its_own_that_resumes(
    run_py: Callable, write_job, trainer, make_pictures, tmp_path: Path
) -> None:
    images = make_pictures(tmp_path / "images", "a", "b")
    job = write_job(trainer(images), name="maya")
    done = run_py(job, "--seeds", "1,2")
    assert done.returncode == 0, done.stderr
    assert "seed 1: done" in done.stdout and "loss of 2 runs: mean " in done.stdout
    losses = [
        [
            row["loss"]
            for row in lines(tmp_path / f"output/maya_seed{seed}/metrics.jsonl")
        ]
        for seed in (1, 2)
    ]
    assert losses[0] != losses[1] and not (tmp_path / "output/maya").exists()
    saved = load_job(tmp_path / "output/maya_seed2/config.yaml", discover().find_config)
    assert saved.processes[0].section.training_seed == 2
    alone = run_py(job, "-n", "alone", "--seeds", "2")
    assert alone.returncode == 0, alone.stderr
    assert [
        row["loss"] for row in lines(tmp_path / "output/alone_seed2/metrics.jsonl")
    ] == losses[1]
    again = run_py(job, "--seeds", "1,2", "--dry-run").stdout
    for seed in (1, 2):
        assert f"Job maya_seed{seed}" in again
        assert f"folder: output/maya_seed{seed}: complete at step 2" in again
