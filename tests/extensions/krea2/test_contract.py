"""Krea 2, by the contract of all families."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers import Krea2Pipeline
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from benchmarks import family_units
from extensions.krea2.family import LAYER_NAMES
from tests.diffusers_reference import memory_stores, psnr
from tests.extensions.family_contract import *  # noqa: F403 - its tests and its fixtures
from tests.extensions.family_contract import Row, draw_from_zero
from tests.extensions.krea2.small import write_krea2
from tests.measured import at_least, at_most
from toolkit.config.sections.model_files import family_named
from toolkit.contracts.data import Size
from toolkit.data.batches.latent_cache import ItemEncoder
from toolkit.memory.estimate import step_peak
from toolkit.models.families import ModelLoadOptions
from toolkit.train.sampling import SamplePrompt, Sampler


def predict(
    pipeline: Krea2Pipeline,
    x_t_BCHW: Tensor,
    t_B: Tensor,
    prompts: Sequence[str],
    references: Sequence[Tensor],
) -> Tensor:
    """With the padding of texts, and its mask."""
    with torch.no_grad():
        texts, masks = pipeline.encode_prompt(list(prompts))
    height, width = (side // 2 for side in x_t_BCHW.shape[-2:])
    found = pipeline.transformer(
        hidden_states=pixel_unshuffle(x_t_BCHW, 2).flatten(2).mT,
        encoder_hidden_states=texts,
        timestep=t_B,
        position_ids=pipeline.prepare_position_ids(
            texts.shape[1], height, width, x_t_BCHW.device
        ),
        encoder_attention_mask=masks,
    )
    return pixel_shuffle(found.sample.mT.unflatten(2, (height, width)), 2)


def encode(pipeline: Krea2Pipeline, pixels_BPHW: Tensor) -> Tensor:
    config = pipeline.vae.config
    latents_BCHW = pipeline.vae.encode(pixels_BPHW[:, :, None]).latent_dist.mode()[
        :, :, 0
    ]
    mean, std = (
        torch.tensor(each).view(-1, 1, 1)
        for each in (config.latents_mean, config.latents_std)
    )
    return (latents_BCHW - mean) / std


def of_krea(layer: str) -> str:
    """The name of a layer in the code of the model's authors."""
    number = "".join(part for part in layer.split(".") if part.isdecimal())
    for name, (ours,) in LAYER_NAMES.items():
        if layer in (ours, ours.replace("*", number[:1])):
            return name.replace("*", number[:1])
    raise KeyError(layer)


@pytest.fixture(scope="module")
def row() -> Row:
    return Row(
        "krea2",
        write_krea2,
        Krea2Pipeline,
        predict,
        encode,
        draw_from_zero,
        {"published": {}},
        wide={"heads": 8, "head": (32, 48, 48)},
        other_names={
            "ai-toolkit": lambda layer: f"diffusion_model.{of_krea(layer)}",
            "diffusers": lambda layer: f"transformer.{layer}",
            "musubi-tuner": lambda layer: (
                f"lora_unet_{of_krea(layer).replace('.', '_')}"
            ),
        },
    )


@pytest.mark.slow
def test_the_part_that_fuses_long_texts_is_in_the_plan(wide: Path) -> None:
    section = family_units.job(wide, "full", "lora", "bf16")
    found = family_units.taken(section, "a photo of a cat " * 100)
    assert found.work.outside > 0
    planned = sum(step_peak(found.work, "full", gaps=lambda activations: 0))
    at_most("taken / planned", found.step / planned, 1.05)
    at_least("taken / planned", found.step / planned, 0.9)


# ------------------------------------------------------------ Turbo


@pytest.mark.slow
def test_the_turbo_draws_as_its_pipeline_at_one_shift_for_all_sizes(
    tmp_path: Path,
) -> None:
    folder = write_krea2(tmp_path / "turbo", turbo=True)
    pipeline = Krea2Pipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    options = ModelLoadOptions(folder, torch.device("cpu"), torch.float32)
    model = family_named("krea2").open(options)
    assert (model.family.title, model.family.guidance) == ("Krea-2-Turbo", 1.0)
    steps = model.family.sample_steps
    for size in (Size(128, 64), Size(64, 64)):
        prompt = SamplePrompt("a cat", "", size, 42, 1.0, steps)
        sampler = Sampler(
            model, [prompt], ItemEncoder(model, torch.float32), memory_stores()
        )
        likeness = psnr(sampler.generate(0), draw_from_zero(pipeline, prompt))
        at_least(f"sample of the Turbo at {size}, dB", likeness, 60)
