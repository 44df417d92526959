"""All texts of a job go through the text encoder together: each of its weights is read
once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.parts import needs_part
from tests.running import run_job
from toolkit.models import layerwise, vl_prompts

pytestmark = pytest.mark.slow

READ = (
    "language_model.layers.0.self_attn.q_proj.weight",
    "language_model.embed_tokens.weight",
)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each weight of the text encoder was read layer by layer."""
    found, take = Counter[str](), layerwise._Weights.take
    monkeypatch.setattr(
        layerwise._Weights,
        "take",
        lambda self, name: (found.update([name]), take(self, name))[1],
    )
    return found


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Text encoders that were loaded whole."""
    found, load = list[Path](), vl_prompts.load_text_model
    monkeypatch.setattr(
        vl_prompts,
        "load_text_model",
        lambda part, *rest: (found.append(part), load(part, *rest))[1],
    )
    return found


@pytest.fixture
def section(trainer, make_pictures, tmp_path: Path, monkeypatch) -> dict[str, Any]:
    """With regularisation, dropped captions, control images, validation, samples and
    negative prompts."""
    monkeypatch.chdir(tmp_path)
    data = make_pictures(tmp_path / "data", "a", "b", "c")
    reg = make_pictures(tmp_path / "reg", "r")
    control = make_pictures(tmp_path / "control", "a", "b", "c", "x", captions=False)
    held = make_pictures(tmp_path / "held", "x")
    return trainer(
        datasets=[
            {
                "folder_path": str(data),
                "resolution": 64,
                "control_path": str(control),
                "caption_dropout_rate": 0.5,
            },
            {"folder_path": str(reg), "resolution": 64, "is_reg": True},
        ],
        validation={
            "folder_path": str(held),
            "control_path": str(control),
            "timesteps": 1,
        },
        sample={
            "samples": [
                {"prompt": "one", "neg": "none"},
                {"prompt": "two", "ctrl_img": [str(control / "a.png")]},
            ],
            "width": 64,
            "height": 64,
            "sample_steps": 1,
            "guidance_scale": 2,
        },
        train={"steps": 1},
    )


def test_each_weight_is_read_once_in_a_job_and_never_again(
    section, write_job, read, whole
) -> None:
    run_job(write_job(section, name="first"))
    assert set(READ) < read.keys() and any(name.startswith("visual.") for name in read)
    assert set(read.values()) == {1}
    read.clear()
    run_job(write_job(section, name="second"))
    assert not read and not whole


@needs_part("tools.cache")
def test_run_py_cache_reads_each_weight_once_and_leaves_nothing_to_the_training(
    section, write_job, read, whole
) -> None:
    cached = {
        key: section[key]
        for key in (
            "training_folder",
            "device",
            "datasets",
            "validation",
            "sample",
            "model",
        )
    }
    run_job(
        write_job(
            {"type": "cache", "train": {"dtype": "fp32"}, **cached}, name="cached"
        )
    )
    assert set(READ) < read.keys() and set(read.values()) == {1}
    read.clear()
    run_job(write_job(section, name="job"))
    assert not read and not whole


def test_captions_that_are_shuffled_are_encoded_by_the_whole_encoder(
    section, write_job, read, whole
) -> None:
    section["datasets"][0]["shuffle_tokens"] = True
    run_job(write_job(section, name="job"))
    assert set(read.values()) == {1}  # for the other texts
    assert len(whole) == 1
