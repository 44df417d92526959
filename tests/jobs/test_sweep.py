"""`--seeds`: one run per seed, each in its own folder, and what they have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.sweep import Variant, compared, comparison, read_seeds, variants
from tests.running import lines
from toolkit.config import JobConfig, load_job
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
    runs = {Variant(seed=seed): [tmp_path / str(seed)] for seed in (1, 2, 3)}
    width = len(str(tmp_path / "1"))
    assert list(compared(runs)) == [
        f"seed  loss    best validation loss  {'folder':{width}}".rstrip(),
        f"1     0.2500  0.1250                {tmp_path / '1'}",
        f"2     0.7500  0.3750                {tmp_path / '2'}",
        f"3     -       -                     {tmp_path / '3'}",
        "loss of 2 runs: mean 0.5000, 0.2500 to 0.7500, standard deviation 0.3536",
        "best validation loss of 2 runs: mean 0.2500, 0.1250 to 0.3750, standard deviation 0.1768",
    ]
    of_first, *_, of_third = comparison(runs)["runs"]
    assert of_first == {
        "values": {"seed": "1"},
        "folder": str(tmp_path / "1"),
        "loss": 0.25,
        "best_validation_loss": 0.125,
    }
    assert (of_third["loss"], of_third["best_validation_loss"]) == (None, None)
    spread, _ = comparison(runs)["spreads"]
    assert (spread["number"], spread["runs"], spread["mean"]) == ("loss", 2, 0.5)
    swept = variants(["train.lr=1,2"], "1,2")
    table = list(compared({run: [tmp_path / str(run.seed)] for run in swept}))
    assert table[0].split()[:3] == ["train.lr", "seed", "loss"]
    assert [row.split()[:3] for row in table[1:5]] == [
        ["1", "1", "0.2500"],
        ["1", "2", "0.7500"],
        ["2", "1", "0.2500"],
        ["2", "2", "0.7500"],
    ]
    assert table[5].startswith("train.lr 1: loss of 2 runs: mean 0.5000,")
    assert table[7].startswith("train.lr 2: loss of 2 runs: mean 0.5000,")


def test_a_sweep_has_a_run_for_each_combination() -> None:
    found = variants(["train.lr=1e-4, 2e-4", "network.linear=8,16"], None)
    assert [run.suffix for run in found] == [
        "_lr1e-4_linear8",
        "_lr1e-4_linear16",
        "_lr2e-4_linear8",
        "_lr2e-4_linear16",
    ]
    assert found[1].flags() == ("--sweep", "train.lr=1e-4", "network.linear=16")
    seeds = variants(["train.lr=-1,2"], "3,4")
    assert [run.suffix for run in seeds] == [
        "_lr-1_seed3",
        "_lr-1_seed4",
        "_lr2_seed3",
        "_lr2_seed4",
    ]


def test_a_key_that_is_given_again_has_all_values() -> None:
    """As a shell writes `train.lr={1e-4,2e-4}`."""
    twice = variants(["train.lr=1e-4", "train.lr=2e-4"], None)
    assert twice == variants(["train.lr=1e-4,2e-4"], None)
    assert twice == variants(["train.lr={1e-4,2e-4}"], None)


def test_lists_and_texts_with_commas_are_swept() -> None:
    """What stands behind the flag of one run asks for the same run."""
    words = ["sample.prompts=[a, b],'c, d'", "datasets[0].caption_ext=txt,json"]
    found = variants(words, None)
    assert [change.text for change in found[0].swept] == ["[a, b]", "txt"]
    assert [change.text for change in found[2].swept] == ["'c, d'", "txt"]
    assert found[0].suffix == "_prompts_a_b__caption_exttxt"
    for run in found:
        _, *flags = run.flags()
        assert variants(flags, None) == (run,)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.lr"], "--sweep train.lr: write KEY=VALUE"),
        (["train.lr="], "with different values, at most 1000 runs"),
        (["train.lr=1,1"], "with different values, at most 1000 runs"),
        (["trigger_word=a b,a_b"], "with different values, at most 1000 runs"),
        (["a=1,2", "a=1,2"], "give each key once"),
        (["train.lr=[1"], "--sweep train.lr:1:4: not valid YAML"),
        ([f"a=1,{','.join(map(str, range(2, 1002)))}"], "at most 1000 runs in all"),
        (["network.linear=8,16"], "--set network.linear: --sweep gives it, too."),
    ],
)
def test_a_sweep_that_names_no_runs_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        variants(words, None, ["network.linear=4"])
    assert said in str(refused.value)


SEED5 = {"changes": Variant(seed=5).changes, "suffix": Variant(seed=5).suffix}


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
        (("a.yaml", "b.yaml", "--seeds", "1,2"), "commas between the values"),
        (("a.yaml", "--seeds", "1", "2"), "commas between the values"),
        (("a.yaml", "b.yaml", "--sweep", "train.lr=1"), "require one config"),
        (("--sweep", "train.lr=1"), "no config file given"),
        (("a.yaml", "--seeds", "one"), "write whole numbers"),
    ):
        done = run_py(*words)
        assert done.returncode == 2 and told in done.stderr, words


@pytest.mark.slow
def test_each_value_of_a_sweep_has_a_run_and_a_changed_one_resumes(
    run_py: Callable, write_job, trainer, make_pictures, tmp_path: Path
) -> None:
    images = make_pictures(tmp_path / "images", "a")
    job = write_job(trainer(images, train={"steps": 3}), name="maya")
    one = ("--set", "train.steps=1", "--sweep", "train.lr=1e-3,-1", job)
    refused = run_py(*one)
    assert refused.returncode == 2 and not (tmp_path / "output").exists()
    assert "--sweep train.lr: process[0].train.lr: -1 is out of" in refused.stderr
    done = run_py(*one, "--recover")
    assert "train.lr 1e-3: done" in done.stdout
    swept = variants(["train.lr=1e-3,2e-3"], None)
    done = run_py(job, "--set", "train.steps=1", "--sweep", "train.lr=1e-3,2e-3")
    assert done.returncode == 0, done.stderr
    assert "train.lr  loss" in done.stdout and "train.lr 2e-3: done" in done.stdout
    for run in swept:
        saved = (tmp_path / f"output/maya{run.suffix}/config.yaml").read_text()
        section = load_job_text(saved, tmp_path).processes[0].section
        assert section.train.lr == float(run.swept[0].text)
        assert section.train.steps == 1
    more = run_py(job, "--set", "train.steps=2", *swept[0].flags())
    assert more.returncode == 0, more.stderr
    assert len(lines(tmp_path / "output/maya_lr1e-3" / METRICS)) == 2


def load_job_text(text: str, folder: Path) -> JobConfig:
    (folder / "saved.yaml").write_text(text, encoding="utf-8")
    return load_job(folder / "saved.yaml", discover().find_config)


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
    assert "maya_seed2 (" in again
    assert "folder: output/maya_seed2: complete at step 1" in again
