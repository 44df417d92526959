"""The plans of both trainers: roles, memory, warnings, what a start would do."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions.from_scratch.flow_config import FlowTrainerConfig
from extensions.from_scratch.plan import VaePlanner
from extensions.from_scratch.vae_config import VaeTrainerConfig
from toolkit.config.reading.process import JobContext
from toolkit.data.scan import folder_check
from toolkit.errors import DataErrors
from toolkit.plan.memory import Machine
from toolkit.plan.run_plan import RunPlan

JOB, MEASURED = JobContext("job"), JobContext("job", measures_memory=True)


@pytest.fixture
def pictures(make_pictures, tmp_path: Path) -> Path:
    return make_pictures(
        tmp_path / "data", "a", "b", "c", size=(40, 32), captions=False
    )


def plan(
    vae_job, pictures: Path, machine: Machine | None = None, **changes: object
) -> RunPlan:
    """machine: with the memory on it, as at a start."""
    section = VaeTrainerConfig.model_validate(vae_job(pictures, **changes))
    planner = VaePlanner(section, MEASURED if machine else JOB, machine)
    return planner.plan(planner.scan()) if machine else planner.dry_run()


@pytest.mark.slow
def test_it_says_memory_and_parameters_where_they_are_asked_for(
    vae_job, pictures: Path
) -> None:
    gan = {"discriminator": {"channels": 4, "layers": 1}}
    line = "adamw, learning rate 0.001, constant"
    quick = plan(vae_job, pictures, **gan)
    assert quick.memory is None and f"discriminator: {line}" in quick.notes
    assert "memory: computed at the start, or with --dry-run --memory" in quick.notes
    found = plan(vae_job, pictures, Machine("cpu"), **gan)
    phases = found.to_json()["memory"]["phases"]
    assert phases.keys() == {"first step", "training", "saving"}
    assert any(note.startswith("memory: peak 0.3") for note in found.notes)
    assert "memory: without the activations, which are most of it" in found.notes
    assert f"discriminator: 845 parameters, {line}" in found.notes
    on_card = plan(vae_job, pictures, Machine("cuda"))
    assert any(
        "GPU, which is not available here" in note and "fits a 4 GB GPU" in note
        for note in on_card.notes
    )


@pytest.mark.slow
def test_a_job_that_does_not_fit_is_told_what_to_change(
    vae_job, pictures: Path
) -> None:
    gan = {"discriminator": {"channels": 4, "layers": 1}}
    found = plan(
        vae_job,
        pictures,
        Machine("cuda", 10**8),
        **gan,
        train={"ema_config": {"use_ema": True}},
    )
    [advice] = [note for note in found.notes if "until it fits" in note]
    assert advice == (
        "warning: this device has 0.10 GB: not enough; in this order until it fits: "
        "train.batch_size: 1 with gradient_accumulation: 2; train.dtype: bf16; "
        "train.ema_config.use_ema: false; without the section discriminator; fewer channels in model.config"
    )


def test_memory_that_cannot_be_measured_is_said(
    vae_job, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extensions.from_scratch.memory._counted", lambda *_: 1 / 0)
    found = plan(vae_job, pictures, Machine("cpu"))
    assert (
        found.memory is None and "memory: not known (division by zero)" in found.notes
    )


def test_a_validation_costs_reconstructions(vae_job, pictures: Path) -> None:
    notes = plan(vae_job, pictures, validation={"fraction": 0.4, "every": 1}).notes
    assert any(
        note.startswith("validation: 1 image held out")
        and note.endswith("; 1 reconstruction each time")
        for note in notes
    )
    assert not any("forward pass" in note for note in notes)


def test_schedules_that_do_not_fit_are_warned_of_once(vae_job, pictures: Path) -> None:
    train = {"steps": 10, "lr_warmup_steps": 20}
    gan = {"discriminator": {"channels": 4, "layers": 1}}
    warned = [
        note
        for note in plan(vae_job, pictures, **gan, train=train).notes
        if note.startswith("warning: lr:")
    ]
    assert (
        len(warned) == 1
        and "it never reaches the full rate" in warned[0]
        and "(" not in warned[0]
    )
    own = {
        "optimizers": {
            "discriminator": {
                "lr_scheduler": "exponential",
                "lr_scheduler_params": {"gamma": 0.1},
            }
        }
    }
    notes = plan(vae_job, pictures, **gan, **own, train={"steps": 100}).notes
    [early] = [note for note in notes if note.startswith("warning: lr:")]
    assert "below a thousandth of its first value" in early and early.endswith(
        "(discriminator)"
    )


def test_what_a_run_is_too_short_for_is_told(vae_job, pictures: Path) -> None:
    changes = {"train": {"steps": 19}, "stop_when": {"metric": "loss", "below": 1}}
    gan = {"channels": 4, "layers": 1, "start_step": 19}
    notes = "\n".join(
        plan(
            vae_job,
            pictures,
            **changes,
            losses={"kl_warmup_steps": 20},
            discriminator=gan,
        ).notes
    )
    assert (
        "stop_when has no effect: its mean is over 20 steps (stop_when.smooth), and the run has 19"
        in notes
    )
    assert (
        "losses.kl_warmup_steps is 20, and the run has 19 steps: 'kl' never reaches its weight"
        in notes
    )
    assert (
        "discriminator.start_step is 19, and the run has 19 steps: the discriminator is never trained"
        in notes
    )
    long = changes | {"train": {"epochs": 10}}  # of two batches
    notes = "\n".join(
        plan(
            vae_job, pictures, **long, losses={"kl_warmup_steps": 20}, discriminator=gan
        ).notes
    )
    assert "too" not in notes and "never" not in notes and "no effect" not in notes


def test_captions_are_not_missed(vae_job, pictures: Path) -> None:
    assert not any("empty prompt" in note for note in plan(vae_job, pictures).notes)


@pytest.mark.parametrize("is_joint", [False, True])
def test_many_images_that_steps_decode_are_read_whole(
    vae_job, flow_job, pictures: Path, monkeypatch: pytest.MonkeyPatch, is_joint: bool
) -> None:
    monkeypatch.setattr(folder_check, "READ_WHOLE", 2)
    torn = bytearray((pictures / "b.png").read_bytes())
    torn[torn.index(b"IDAT") + 4] ^= 0xFF
    (pictures / "b.png").write_bytes(torn)
    section: VaeTrainerConfig | FlowTrainerConfig
    if is_joint:
        job = flow_job(pictures)
        assert FlowTrainerConfig.model_validate(job).scan().samples == 3
        section = FlowTrainerConfig.model_validate({**job, "autoencoder": {}})
    else:
        section = VaeTrainerConfig.model_validate(vae_job(pictures))
    with pytest.raises(DataErrors, match=r"b\.png"):
        section.scan()


def test_a_folder_without_spade_loses_none(vae_job, pictures: Path, vae: Path) -> None:
    notes = plan(vae_job, pictures, model={"name_or_path": str(vae)}).notes
    assert any(f"AutoencoderKL from {vae}" in note for note in notes)
    assert not any("SPADE" in note for note in notes)
