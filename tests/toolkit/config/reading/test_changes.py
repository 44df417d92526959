"""`--set`: a key of the job that the command line changes is checked, saved and resumed
as an edited one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.config import JobConfig, load_job
from toolkit.config.reading.changes import read_changes
from toolkit.errors import ConfigErrors, UserError
from toolkit.extension import discover

JOB = """job: extension
config:
  name: maya    # mine
  defaults: {drawings: 3}
  process:
    - type: example
      folder_path: images
    - type: sd_trainer    # trains
      device: cpu
      datasets:
        - folder_path: images   # mine
      train:
        steps: 2  # few
        lr: 1e-4
      model: {name_or_path: Qwen/Qwen-Image}
    - type: sd_trainer
      name: second
      datasets: [{folder_path: images}]
      network: {linear: 4}
      model: {name_or_path: Qwen/Qwen-Image}
"""
ONE = (
    JOB.partition("    - type: sd_trainer\n")[0]
    .replace("    - type: example\n      folder_path: images\n", "")
    .replace("  defaults: {drawings: 3}\n", "")
)
TWO = JOB.replace("  defaults: {drawings: 3}\n", "")

Load = Callable[..., JobConfig]


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pictures) -> Load:
    monkeypatch.chdir(tmp_path)
    make_pictures(tmp_path / "images", "a")

    def load(text: str, *words: str, file: str = "job.yaml") -> JobConfig:
        Path(file).write_text(text, encoding="utf-8")
        return load_job(file, discover().find_config, changes=read_changes(words))

    return load


@pytest.mark.parametrize(
    ("word", "line", "edited"),
    [
        ("train.lr=2e-4", "lr: 1e-4", "lr: 0.0002"),
        ("process.0.train.lr=2e-4", "lr: 1e-4", "lr: 0.0002"),
        ("config.process[0].train.lr=2e-4", "lr: 1e-4", "lr: 0.0002"),
        ("train.lr=${RATE:-2e-4}", "lr: 1e-4", "lr: ${RATE:-2e-4}"),
        ("datasets.0.folder_path=./images", "r_path: images", "r_path: ./images"),
        ("train.cuda_allow_tf32=true", "steps: 2", "cuda_allow_tf32: true\n        steps: 2"),
        ("trigger_word=a: b # c", "type: sd", "trigger_word: 'a: b # c'\n      type: sd"),
        ("sample.prompts=[a, 'b, c']", "type: sd", "sample: {prompts: [a, 'b, c']}\n      type: sd"),
        ("network='{linear: 8}'", "type: sd", "network: {linear: 8}\n      type: sd"),
        ("name=otto", "name: maya", "name: otto"),
        ("meta.version=2", "job:", "meta: {version: 2}\njob:"),
    ],
)  # fmt: skip
def test_a_changed_key_is_as_an_edited_one(
    changed: Load, word: str, line: str, edited: str
) -> None:
    """The saved copy has it in its place, with the comments around it."""
    config = changed(ONE, word)
    assert config.unexpanded_text == ONE.replace(line, edited, 1)
    again = changed(config.unexpanded_text)
    assert again.name == config.name and again.meta == config.meta
    assert [entry.section for entry in again.processes] == [
        entry.section for entry in config.processes
    ]


def test_several_changes_are_made_and_the_last_of_a_key_counts(changed: Load) -> None:
    words = ("network.linear=8", "network.linear_alpha=4", "network.linear=2")
    network = changed(ONE, *words).processes[0].section.network
    assert (network.linear, network.linear_alpha) == (2, 4)
    saved = changed(ONE, *words).unexpanded_text
    assert "network: {linear_alpha: 4, linear: 2}" in saved


@pytest.mark.parametrize(
    ("text", "word", "said"),
    [
        (ONE, "train.lr=x", "--set train.lr: process[0].train.lr: 'x' is not a number."),
        (ONE, "train.lr.x=1", "--set train.lr.x: process[0].train.lr: a mapping is not a"),
        (ONE, "trian.lr=1", "unknown key. Did you mean 'train'?"),
        (ONE, "train.lr=[1", "--set train.lr:1:8: not valid YAML: the bracket that opens"),
        (ONE, "process.3.train.lr=1", "counted from 0, and process.0 is the last."),
        (ONE, "process.maya.train.lr=1", "counted from 0, and process.0 is the last."),
        (ONE, "datasets.1.folder_path=x", "1 entries, counted from 0: there is no 1."),
        (ONE, "train.lr=${NO_SUCH_RATE}", "--set train.lr: process[0].train.lr: the environment"),
        (TWO, "train.lr=1", "2 processes of this job have this key. Write process.1.train.lr or process.2.tr"),
        (TWO, "trian.lr=1", "no process of this job has the key trian.lr. Did you mean 'train'?"),
        (TWO, "process.*.nosuch=1", "no process of this job has the key nosuch."),
        (
            ONE.replace("  process:", "  defaults: {groups: [{lr: 1}]}\n  process:"),
            "groups.0.lr=2",
            "the list stands in 'defaults'. Write defaults.groups.0.lr for all",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_set_is_said_with_the_flag_as_its_place(
    changed: Load, text: str, word: str, said: str
) -> None:
    with pytest.raises(UserError) as refused:
        changed(text, word)
    assert said in str(refused.value)
    assert str(refused.value).startswith("--set ")


def test_of_several_processes_the_one_that_has_the_key_is_meant(changed: Load) -> None:
    sections = [entry.section for entry in changed(TWO, "output=b.json").processes]
    assert sections[0].output == "b.json"
    both = changed(TWO, "process.*.train.lr=1e-5").processes[1:]
    assert [entry.section.train.lr for entry in both] == [1e-5, 1e-5]


@pytest.mark.parametrize(
    "text",
    [
        "job: extension\nconfig: {name: a, process: []}",
        "job: extension\nconfig: [a]",
        "job: extension\n",
        "job: extension\nconfig: {name: a, process: {type: sd_trainer}}",
    ],
)
@pytest.mark.parametrize("word", ["train.lr=1", "process.0.train.lr=1"])
def test_a_file_that_is_no_job_is_reported_as_without_changes(
    changed: Load, text: str, word: str
) -> None:
    with pytest.raises(ConfigErrors, match=r"job\.yaml:\d+:\d+: .*(?:process|config)"):
        changed(text, word)


@pytest.mark.parametrize(
    "word", ["", "train.lr", "=1", "a b=1", "datasets[].x=1", "1=2"]
)
def test_words_that_are_no_pair_are_refused(word: str) -> None:
    with pytest.raises(
        UserError, match=r"write KEY=VALUE, such as --set train\.lr=1e-4"
    ):
        read_changes([word])


def test_a_value_that_an_alias_shares_is_changed_in_one_place(changed: Load) -> None:
    shared = "lr: 1e-4\n        epochs: *few"
    text = ONE.replace("steps: 2", "steps: &few 2").replace("lr: 1e-4", shared)
    config = changed(text, "train.steps=5")
    again = changed(config.unexpanded_text).processes[0].section.train
    assert (again.steps, again.epochs) == (5, 2)


def test_a_job_in_json_is_saved_with_the_change(changed: Load) -> None:
    process = {
        "type": "sd_trainer",
        "datasets": [{"folder_path": "images"}],
        "model": {"name_or_path": "Qwen/Qwen-Image"},
    }
    job = {"job": "extension", "config": {"name": "maya", "process": [process]}}
    config = changed(json.dumps(job), "train.lr=2e-4", file="job.json")
    assert changed(config.unexpanded_text).processes[0].section.train.lr == 2e-4


def test_a_secret_is_set_and_not_saved(changed: Load) -> None:
    word = "logging={log_with: wandb, wandb_api_key: 0123456789abcdef}"
    config = changed(ONE, word)
    assert config.processes[0].section.logging.wandb_api_key == "0123456789abcdef"
    assert "0123456789" not in config.unexpanded_text


def test_a_file_of_another_program_is_to_be_converted_first(changed: Load) -> None:
    with pytest.raises(UserError, match=r"--set train.lr: .*run.py import job.toml"):
        changed("pretrained_model_name_or_path = 'x'\nnetwork_dim = 4\n", "train.lr=1", file="job.toml")  # fmt: skip
