"""The counted weights of a job against those that are trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions.from_scratch.flow_config import FlowTrainerConfig
from extensions.from_scratch.losses_config import VAE
from extensions.from_scratch.memory import step_bytes
from extensions.from_scratch.vae_config import VaeTrainerConfig

GAN = {"discriminator": {"channels": 8, "layers": 1}}


@pytest.fixture
def pictures(make_pictures, tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "data", "a", "b", size=(64, 64))


def test_what_stays_is_that_of_the_roles(vae_job, pictures: Path) -> None:
    train = {"ema_config": {"use_ema": True}, "optimizer": "sgd"}
    job = vae_job(
        pictures,
        **GAN,
        losses={"lpips": 1},
        train=train,
        optimizers={"vae": {"optimizer": "adamw"}},
    )
    job["model"] |= {"train": "decoder"}
    found = step_bytes(VaeTrainerConfig.model_validate(job))
    vae, both = found.trained[VAE], sum(found.trained.values())
    assert found.average == 4 * vae and found.optimizer == pytest.approx(
        8 * vae, rel=0.01
    )
    assert found.save.state == 4 * both + found.average + found.optimizer
    assert found.gradients == 4 * both
    assert found.save.file > 4 * both  # the encoder is in the folder too
    assert found.weights > 4 * (both + 14e6)  # so is VGG16, of LPIPS


def test_a_frozen_text_encoder_of_the_hub_that_is_not_here_is_left_out(
    flow_job, pictures: Path
) -> None:
    job = flow_job(pictures, model={"text_encoder": {"name_or_path": "owner/name"}})
    found = step_bytes(FlowTrainerConfig.model_validate(job))
    assert set(found.trained) == {"flow"}
