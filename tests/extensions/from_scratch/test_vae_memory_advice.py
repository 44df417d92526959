"""What to change when memory is short: keys of the job, each of which lowers the plan, the largest saving first."""

from __future__ import annotations

from typing import Any

import pytest

from extensions.compat.fluxflow import sized
from extensions.from_scratch.autoencoders import make_autoencoder
from extensions.from_scratch.vae_config import VaeTrainerConfig
from extensions.from_scratch.vae_memory_advice import advice, memory_advice, suggestions
from extensions.from_scratch.vae_memory_plan import Work, plan_memory
from tests.extensions.from_scratch.test_vae_memory_plan import CARD, section
from toolkit.memory.estimate import GB, Machine
from toolkit.memory.oom_hints import applied

FULL: dict[str, Any] = {
    "model": {"config": sized(64), "spade": True},
    "losses": {"lpips": 0.1},
    "discriminator": {},
    "train": {"batch_size": 4, "ema_config": {"use_ema": True}},
    "datasets": [{"folder_path": ".", "resolution": 1024}],
}
"""Every key that costs memory."""


def peak(job: VaeTrainerConfig) -> int:
    return plan_memory(job, Work.of_settings(job), CARD).device_bytes


def test_each_change_lowers_the_plan_and_can_be_written_so() -> None:
    job = section(**FULL)
    found = list(suggestions(job))
    assert len(found) == 8
    for change in found:
        if change.area == 1:
            assert peak(applied(job, [change])) < peak(job), change.text


def test_a_smaller_resolution_lowers_it() -> None:
    smaller = {**FULL, "datasets": [{"folder_path": ".", "resolution": 768}]}
    assert "datasets[].resolution: 768" in [change.text for change in suggestions(section(**FULL))]
    assert peak(section(**smaller)) < 0.6 * peak(section(**FULL))


def test_what_saves_most_comes_first_and_what_saves_nothing_does_not() -> None:
    words = memory_advice(section(**FULL), CARD)
    assert words.startswith("To save memory, in order of effect: train.batch_size: 1 with gradient_accumulation: 4; ")
    named = words.rstrip(".").partition("effect: ")[2].split("; ")
    changes = {change.text: change for change in suggestions(section(**FULL))}
    peaks = [peak(applied(section(**FULL), [changes[text]])) for text in named if changes[text].area == 1]
    assert peaks == sorted(peaks) and len(named) >= 6
    assert "train.ema_config.use_ema: false" not in named  # 5 MB


def test_a_job_without_these_keys_is_told_of_what_is_left() -> None:
    frugal = section(train={"batch_size": 1, "dtype": "bf16"}, datasets=[{"folder_path": ".", "resolution": 512}])
    texts = [change.text for change in suggestions(frugal)]
    assert texts == ["datasets[].resolution: 384"]  # its channels cannot be halved


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderKLQwenImage", "AutoencoderTiny"])
def test_half_of_the_channels_is_an_autoencoder(kind: str) -> None:
    import torch

    wide: dict[str, dict[str, Any]] = {
        "AutoencoderKL": sized(64) | {"norm_num_groups": 16},
        "AutoencoderKLQwenImage": {"base_dim": 32},
        "AutoencoderTiny": {"encoder_block_out_channels": [32] * 4, "decoder_block_out_channels": [32] * 4},
    }
    job = section(kind, model={"config": wide[kind]}, losses={"kl": 0})
    [change] = [change for change in suggestions(job) if change.text.startswith("model.config: ")]
    smaller = applied(job, [change])
    assert peak(smaller) < peak(job)
    with torch.device("meta"):
        make_autoencoder(smaller.model, 0, torch.device("meta"))


def test_one_of_a_folder_keeps_its_channels(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL", "block_out_channels": [64, 64]}')
    model = {"name_or_path": str(tmp_path)}
    job = VaeTrainerConfig.model_validate(
        {"type": "vae_trainer", "datasets": [{"folder_path": "."}], "model": model, "train": {"steps": 1}}
    )
    assert not [change for change in suggestions(job) if "model.config" in change.text]


def test_a_card_that_is_too_small_is_told_what_brings_it_there() -> None:
    job = section(**FULL)
    work = Work.of_settings(job)
    found = plan_memory(job, work, CARD)
    card = Machine("cuda", 12 * GB)
    words = advice(job, work, card, found)
    assert words and words.startswith("warning: this device has 12.0 GB, which is not enough: train.batch_size: 1")
    assert float(words.rpartition("then ")[2].split()[0]) <= 12
    assert advice(job, work, Machine("cuda", 500 * GB), found) is None


def test_for_an_unknown_card_the_next_smaller_one_is_meant() -> None:
    job = section(
        **FULL,
    )
    words = advice(job, Work.of_settings(job), CARD, plan_memory(job, Work.of_settings(job), CARD))
    assert words and words.startswith("for a ") and " GB GPU: train.batch_size: 1" in words
