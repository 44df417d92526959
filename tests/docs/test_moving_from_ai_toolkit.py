"""docs/moving_from_ai_toolkit.md: its two jobs are one, and its tables of keys and
defaults hold."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from extensions.sd_trainer.config import SdTrainerConfig
from tests.conftest import ROOT
from toolkit.config import JobConfig, load_job
from toolkit.errors import ConfigErrors
from toolkit.extension import discover
from toolkit.models.qwen_image.family import FAMILY

PAGE = (ROOT / "docs" / "moving_from_ai_toolkit.md").read_text(encoding="utf-8")
BEFORE, AFTER = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
PHOTOS = ROOT / "config" / "examples" / "photos" / "40_photo"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    for folder in ("before", "after"):
        shutil.copytree(PHOTOS, tmp_path / "datasets" / folder)

    def load_text(text: str) -> JobConfig:
        (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
        return load_job("job.yaml", discover().find_config)

    return load_text


def settings(job: JobConfig) -> dict[str, Any]:
    (process,) = job.processes
    assert isinstance(process.section, SdTrainerConfig)
    return {**process.section.model_dump(mode="json"), "type": ""}


def test_both_jobs_are_the_same_run(load: Any) -> None:
    before, after = load(BEFORE), load(AFTER)
    assert settings(before) == settings(after)
    assert after.warnings == ()
    assert any("conv" in warning for warning in before.warnings)


def test_the_defaults_here_are_those_of_the_table(load: Any) -> None:
    section = SdTrainerConfig.model_validate(
        {
            "type": "sd_trainer",
            "datasets": [{"folder_path": "d"}],
            "model": {"name_or_path": "m"},
            "sample": {},
        }
    )
    rows = dict(
        re.findall(
            r"^\| `([^`]+)`[^|]*\|[^|]*\| `?([^`|;: ]+)",
            PAGE.split("## Defaults")[1],
            re.MULTILINE,
        )
    )
    train, sample = section.train, section.sample
    assert (rows["model.qtype"], rows["model.quantize_te"]) == (
        section.model.qtype,
        "false",
    )
    assert int(rows["network.linear"]) == section.network.linear
    assert float(rows["train.lr"]) == train.lr
    assert (rows["train.dtype"], train.dtype) == ("bf16", "bfloat16")
    assert rows["train.gradient_checkpointing"] == train.gradient_checkpointing
    assert int(rows["save.save_every"]) == section.save.save_every
    assert section.model.quantize_te is False
    assert (
        f"{sample.sample_every}, {sample.width}, {sample.height}, {FAMILY.guidance:g}, {sample.seed} |"
        in PAGE
    )
    assert section.datasets[0].keeps("latents") and section.datasets[0].keeps("text")


SAID_TO_BE = {"not supported": False, "the same": True, "the old name is read": True}
"""What a row of the table of keys says -> whether a job may have the key."""

VALUES = {
    "model.qtype": "uint3",
    "train.diff_output_preservation": True,
    "train.blank_prompt_preservation": True,
    "sample.network_multiplier": 0.5,
    "sample.prompts": ["a photo"],
    "logging.use_wandb": True,
}
ROWS = {
    key if "." in key else f"{first.partition('.')[0]}.{key}": loads
    for keys, answer in re.findall(
        r"^\| (`.*?`) \| (.*?) \|$",
        PAGE.split("## Keys")[1].split("## Files")[0],
        re.MULTILINE,
    )
    for first in [re.findall(r"`([\w.]+)", keys)[0]]
    for key in re.findall(r"`([\w.]+)[:`]", keys)
    for words, loads in SAID_TO_BE.items()
    if words in answer
}


def test_the_rows_that_say_what_becomes_of_a_key_are_those_that_are_tried() -> None:
    assert set(ROWS) == set(VALUES)


@pytest.mark.parametrize("key", ROWS)
def test_what_the_table_says_of_a_key_becomes_of_it(
    load: Any, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    section, name = key.split(".")
    job = yaml.safe_load(AFTER)
    process = job["config"]["process"][0]
    if key == "sample.prompts":
        del process["sample"]["samples"]
    process["train"]["diff_output_preservation"] = (
        False  # only one of the two may be on
    )
    process.setdefault(section, {})[name] = VALUES[key]
    text = yaml.safe_dump(job)
    if ROWS[key]:
        assert settings(load(text))
    else:
        with pytest.raises(ConfigErrors, match=name):
            load(text)
