"""`run.py best` on runs whose samples are also generated with few-step LoRAs and on
other models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.extensions.sd_trainer.test_process_few_step import ALSO, SAMPLE
from tests.extensions.sd_trainer.test_process_few_step import run as run
from tests.extensions.sd_trainer.test_process_few_step import turbo as turbo
from tests.extensions.sd_trainer.test_process_few_step import (
    turbo_models as turbo_models,
)
from tests.running import run_tool
from toolkit.train.run_reader import read_events


@pytest.mark.slow
def test_what_survives_in_each_way_is_what_the_run_has_said(
    request: pytest.FixtureRequest,
) -> None:
    sample = {
        **SAMPLE,
        "samples": [{"prompt": "a fox"}, {"prompt": "a hat", "seed": 5}],
        "format": "png",
        "also": ALSO,
    }
    # At this rate two steps change so much that a pixel which `best` rounds otherwise
    # does not move the score.
    train = {"assistant": "assistant.safetensors", "lr": 0.2}
    folder: Path = request.getfixturevalue("run")("also", train, sample=sample)
    *_, event = [line for line in read_events(folder).rows if line["event"] == "sample"]
    run_tool("best", [str(folder), "--steps", "2", "--prompts", "a lake"])
    *_, final = json.loads((folder / "best.json").read_text())["files"]
    assert final["survival"] == pytest.approx(event["survival"], abs=1e-3)


@pytest.mark.slow
def test_other_models_of_the_samples_are_measured_too(
    request: pytest.FixtureRequest,
) -> None:
    base, other = map(str, request.getfixturevalue("turbo"))
    keys = {
        "validation": None,
        "network": {"type": "lora", "linear": 4, "linear_alpha": 4},
    }
    sample = {
        **SAMPLE,
        "format": "png",
        "sample_every": 1,
        "also": [{"model": other}, {"levels": [1.0, 0.6]}],
    }
    folder: Path = request.getfixturevalue("run")(
        "also", model={"name_or_path": base}, sample=sample, **keys
    )
    run_tool("best", [str(folder), "--steps", "2", "--images", "2"])
    *_, final = json.loads((folder / "best.json").read_text())["files"]
    assert final["survival"].keys() == {"turbo", "also"}
