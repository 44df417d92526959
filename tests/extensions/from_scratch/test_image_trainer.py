"""What every trainer on images promises, of these: the tests of the core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extensions.from_scratch.memory import step_bytes
from extensions.from_scratch.plan import StepBytes
from tests.extensions.from_scratch.conftest import TRANSFORMERS
from tests.extensions.from_scratch.unmeasured import MEASURE
from tests.jobs.process.test_image_trainer import *  # noqa: F403 - its tests
from tests.jobs.process.test_image_trainer import job_of

GAN = {"channels": 4, "layers": 1}
ALONG = {"autoencoder": {"losses": {"kl": 0}}}
WIDER = {
    "transformer": {"config": TRANSFORMERS["SD3Transformer2DModel"] | {"num_layers": 3}}
}

TRAINERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "vae_trainer, GAN": (
        "vae_job",
        {"discriminator": GAN},
        {"discriminator": GAN | {"layers": 2}},
    ),
    "flow_trainer, joint": ("flow_job", ALONG, {"model": WIDER}),
}
"""The fixture that makes its section, what is particular to it, and a change that a
resume cannot take."""


steps_of: dict[str, StepBytes] = {}


def step_bytes_once(section: Any) -> StepBytes:
    """As `step_bytes`, which takes a second, once for each model and way to train
    it."""
    key = f"{section.model} {section.trained_autoencoder()} {section.train.optimizer}"
    if key not in steps_of:
        steps_of[key] = step_bytes(section)
    return steps_of[key]


SLOW = ("flow_trainer, joint",)


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
        for name in TRAINERS
    ]
)
def trains(
    request: pytest.FixtureRequest,
    make_pictures,
    write_job,
    tmp_path: Path,
    monkeypatch,
) -> Callable[..., Path]:
    """The file of a job of this trainer, with these changes; `changed`: with the one
    that a resume cannot take."""
    fixture, own, impossible = TRAINERS[request.param]
    section = request.getfixturevalue(fixture)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MEASURE, f"{__name__}:step_bytes_once")
    images = make_pictures(tmp_path / "data", "a", "b", "c", size=(40, 32))
    return job_of(section, write_job, images, own, impossible)
