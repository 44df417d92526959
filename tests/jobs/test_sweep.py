"""`--seeds`: one run per seed, each in its own folder, and what they have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.sweep import compared, read_seeds
from tests.running import lines
from toolkit.config import load_job
from toolkit.config.reading.changes import Change
from toolkit.errors import ConfigErrors, UserError
from toolkit.extension import discover
from toolkit.files.run_files import METRICS


def test_other_texts_are_refused_with_what_to_write() -> None:
    many = ",".join(map(str, range(1, 102)))
    for text in "1,x", "", "0", "1,,2", "1,1", "-3", "4294967296", "1 2", many:
        with pytest.raises(UserError) as refused:
            read_seeds(text)
            pytest.fail(f"{text!r} is taken")
        assert re.search(
            r"--seeds .*(write whole numbers from 1 on|give different seeds)",
            str(refused.value),
        ), text


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


SEED5 = {
    "changes": (Change("process.*.training_seed", "5", "--seeds"),),
    "suffix": "_seed5",
}


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
    config = load_job("job.yaml", discover().find_config, **SEED5)
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
    with pytest.raises(
        UserError, match="no process of this job has the key training_seed"
    ):
        load_job(tool, discover().find_config, **SEED5)
    with pytest.raises(ConfigErrors, match="is too long"):
        load_job(tool, discover().find_config, **SEED5, name="x" * 210)


def test_it_takes_one_config(run_py: Callable, tmp_path: Path) -> None:
    for words, told in (
        (("a.yaml", "b.yaml", "--seeds", "1,2"), "commas between the seeds"),
        (("a.yaml", "--seeds", "1", "2"), "commas between the seeds"),
        (("a.yaml", "--seeds", "one"), "write whole numbers"),
    ):
        done = run_py(*words)
        assert done.returncode == 2 and told in done.stderr, words


@pytest.mark.slow
def test_each_seed_has_a_run_of_its_own_that_resumes(
    run_py: Callable, write_job, trainer, make_pictures, tmp_path: Path
) -> None:
    images = make_pictures(tmp_path / "images", "a")
    job = write_job(trainer(images, train={"steps": 1}), name="maya")
    done = run_py(job, "--seeds", "1,2")
    assert done.returncode == 0, done.stderr
    assert "seed 1: done" in done.stdout and "loss of 2 runs: mean " in done.stdout
    one, two = (tmp_path / f"output/maya_seed{seed}" for seed in (1, 2))
    assert lines(one / METRICS)[0]["loss"] != lines(two / METRICS)[0]["loss"]
    assert not (tmp_path / "output/maya").exists()
    saved = load_job(two / "config.yaml", discover().find_config)
    assert saved.processes[0].section.training_seed == 2
    again = run_py(job, "--seeds", "2", "--dry-run").stdout
    assert "Job maya_seed2" in again
    assert "folder: output/maya_seed2: complete at step 1" in again
