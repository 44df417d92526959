"""Z-Image, by the contract of all families."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from diffusers import ZImagePipeline
from torch import Tensor

from tests.extensions.family_contract import *  # noqa: F403 - its tests and its fixtures
from tests.extensions.family_contract import Row, draw_from_zero
from tests.extensions.z_image.small import write_z_image


def predict(
    pipeline: ZImagePipeline,
    x_t_BCHW: Tensor,
    t_B: Tensor,
    prompts: Sequence[str],
    references: Sequence[Tensor],
) -> Tensor:
    with torch.no_grad():
        texts, _ = pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False
        )
    found = pipeline.transformer(list(x_t_BCHW.unsqueeze(2)), 1 - t_B, texts)
    return -torch.stack(found.sample).squeeze(2)


def encode(pipeline: ZImagePipeline, pixels_BPHW: Tensor) -> Tensor:
    config = pipeline.vae.config
    latents_BCHW = pipeline.vae.encode(pixels_BPHW).latent_dist.mode()
    return (latents_BCHW - config.shift_factor) * config.scaling_factor


@pytest.fixture(scope="module")
def row() -> Row:
    return Row(
        "z_image",
        write_z_image,
        ZImagePipeline,
        predict,
        encode,
        draw_from_zero,
        {"published": {}},
        wide={"heads": 8, "head": (32, 48, 48)},
        programs=3,  # the first refiner has no adapters, the second other arguments
        other_names={
            "ai-toolkit": lambda layer: f"diffusion_model.{layer}",
            "diffusers": lambda layer: f"transformer.{layer}",
            "musubi-tuner": lambda layer: f"lora_unet_{layer.replace('.', '_')}",
        },
    )
