"""The memory of a step on fake tensors against that of a real one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.live_bytes import LiveBytes
from extensions.compat.fluxflow import sized
from extensions.from_scratch.flow_config import FlowTrainerConfig
from extensions.from_scratch.latent_flow.family import TRANSFORMERS
from extensions.from_scratch.losses_config import VAE
from extensions.from_scratch.memory import step_bytes
from extensions.from_scratch.plan import StepBytes, Work
from extensions.from_scratch.vae_config import VaeTrainerConfig
from tests.extensions.from_scratch.conftest import TEXT

SD3, QWEN, QWEN_21 = TRANSFORMERS
GAN = {"discriminator": {"channels": 8, "layers": 1}}
SIDE = 64
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture
def pictures(make_pictures, tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "data", "a", "b", size=(SIDE, SIDE))


@pytest.fixture
def taken(start, monkeypatch: pytest.MonkeyPatch):
    """Runs a job of one step; returns the bytes of its step, and of what is trained and
    its optimizers' state."""

    def run(job: dict[str, Any]) -> dict[str, int]:
        from jobs.process import image_trainer

        seen, train = {}, image_trainer.train

        def watched(run, source, step) -> None:
            plain, parameters = (
                step.backward,
                [p for role in run.roles.values() for p in role.parameters.values()],
            )

            def backward(batch, passes):
                live = LiveBytes()
                live.move(parameters, to_host=False)
                live.phase("step")
                weights = live.device
                with live:
                    losses = plain(batch, passes)
                seen["step"] = live.phases["step"].device - weights
                return losses

            step.backward = backward
            train(run, source, step)
            seen["weights"] = sum(p.numel() for p in parameters)
            seen["state"] = sum(role.state_bytes for role in run.roles.values())

        monkeypatch.setattr(image_trainer, "train", watched)
        start(job)
        return seen

    return run


def short(job: dict[str, Any]) -> dict[str, Any]:
    job["train"] |= {"steps": 1}
    if job["type"] == "flow_trainer":
        job["train"] |= {"gradient_checkpointing": False}
    job["datasets"][0]["resolution"] = SIDE
    return job


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        slow("AutoencoderKL", {"model": {"config": sized(16), "spade": True}, **GAN}),
        slow(
            "AutoencoderKL",
            {
                "model": {"config": sized(16), "train": "decoder"},
                "losses": {"histogram": 1},
            },
        ),
        ("AutoencoderTiny", {}),
        slow("AutoencoderKLQwenImage", {}),
    ],
)
def test_a_step_of_an_autoencoder_takes_what_the_plan_says(
    taken, vae_job, pictures: Path, kind: str, changes: dict[str, Any]
) -> None:
    job = short(vae_job(pictures, kind, **changes))
    seen, found = (
        taken(job),
        step_bytes(
            VaeTrainerConfig.model_validate(job), Work(2, SIDE, SIDE), on_gpu=False
        ),
    )
    assert found.step == pytest.approx(seen["step"], rel=0.03)
    assert sum(found.trained.values()) == seen["weights"]
    assert found.optimizer == pytest.approx(seen["state"], rel=0.01)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [slow(SD3, {"autoencoder": GAN}), slow(QWEN, {"train": {"dtype": "bf16"}})],
)
def test_a_step_of_a_flow_model_takes_what_the_plan_says(
    taken, flow_job, pictures: Path, kind: str, changes: dict[str, Any]
) -> None:
    more = {"pos_embed_max_size": 32} if kind == SD3 else {}
    wide = {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 32, **more}
    text = {"config": {**TEXT, "vocab_size": 300}, "max_tokens": 8}
    model = {"transformer": {"class_name": kind, "config": wide}, "text_encoder": text}
    job = short(flow_job(pictures, kind, model=model, **changes))
    seen, found = (
        taken(job),
        step_bytes(
            FlowTrainerConfig.model_validate(job), Work(2, SIDE, SIDE), on_gpu=False
        ),
    )
    assert found.step == pytest.approx(seen["step"], rel=0.05)
    assert sum(found.trained.values()) == pytest.approx(seen["weights"], rel=0.01)
    assert found.optimizer == pytest.approx(seen["state"], rel=0.01)


@pytest.mark.slow
def test_on_a_gpu_norms_are_float32(vae_job, pictures: Path) -> None:
    job = VaeTrainerConfig.model_validate(vae_job(pictures, train={"dtype": "bf16"}))
    host, card = (
        step_bytes(job, Work(2, SIDE, SIDE), on_gpu).step for on_gpu in (False, True)
    )
    assert card > 1.1 * host


@pytest.mark.slow
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
    found = step_bytes(
        VaeTrainerConfig.model_validate(job), Work(2, 32, 32), on_gpu=False
    )
    vae, both = found.trained[VAE], sum(found.trained.values())
    assert found.average == 4 * vae and found.optimizer == pytest.approx(
        8 * vae, rel=0.01
    )
    assert found.save.state == 4 * both + found.average + found.optimizer
    assert found.save.file > 4 * both  # the encoder is in the folder too
    assert found.weights > 4 * (both + 14e6)  # so is VGG16, of LPIPS


@pytest.mark.slow
def test_smaller_settings_lower_the_plan(flow_job, pictures: Path) -> None:
    def found(images: int = 4, **changes: Any) -> StepBytes:
        section = FlowTrainerConfig.model_validate(
            flow_job(pictures, QWEN_21, **changes)
        )
        return step_bytes(section, Work(images, 64, 64), on_gpu=False)

    plain: dict[str, Any] = {"train": {"gradient_checkpointing": False}}
    whole = found(**plain)
    assert found(images=2, **plain).step < whole.step
    assert found(train={"gradient_checkpointing": True}).step < whole.step
    joint = found(**plain, autoencoder={})
    assert joint.step > whole.step
    assert whole.encoding and not joint.encoding


@pytest.mark.slow
def test_the_autoencoder_stays_where_samples_or_edits_are_decoded(
    flow_job, pictures: Path
) -> None:
    def weights(**changes: Any) -> int:
        section = FlowTrainerConfig.model_validate(flow_job(pictures, QWEN, **changes))
        return step_bytes(section, Work(1, 32, 32), on_gpu=False).weights

    measured = {"folder_path": str(pictures), "control_path": str(pictures)}
    assert (
        weights(validation={**measured, "edits": 1})
        == weights(sample={})
        > weights(validation=measured)
    )


@pytest.mark.slow
def test_a_frozen_text_encoder_of_the_hub_that_is_not_here_is_left_out(
    flow_job, pictures: Path
) -> None:
    job = flow_job(pictures, model={"text_encoder": {"name_or_path": "owner/name"}})
    found = step_bytes(
        FlowTrainerConfig.model_validate(job), Work(1, 32, 32), on_gpu=False
    )
    assert set(found.trained) == {"flow"}
