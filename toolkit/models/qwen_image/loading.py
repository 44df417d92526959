"""Reads the parts of a Qwen-Image-Edit folder, each when it is needed; every size comes from its config files."""

from __future__ import annotations

from pathlib import Path

import torch

from toolkit.models.encoder_weights import of_wan
from toolkit.models.families import ModelLoadOptions
from toolkit.models.loading import ASKED_BY, block_import, load_blockwise, load_frozen
from toolkit.models.one_frame import expect_one_frame
from toolkit.registry import SPADE_LOADER, load_object

with block_import("bitsandbytes", ASKED_BY):  # diffusers would import it only to know that it is there
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

TEXT_ENCODER = "Qwen2_5_VLForConditionalGeneration"

TABULATED = ("img_mod", "txt_mod")
"""Parts of a block that a table can stand for: of the image stream, of the text stream."""


def load_transformer(options: ModelLoadOptions) -> QwenImageTransformer2DModel:
    """The transformer of a model folder; see `load_blockwise`."""
    return load_blockwise(options, QwenImageTransformer2DModel, TABULATED)


def load_vae(part: Path, dtype: torch.dtype, file: Path | None = None) -> AutoencoderKLQwenImage:
    """The VAE with its SPADE, frozen, on the CPU.

    file: see `load_frozen`; its names are those of diffusers or of Wan's VAE, which is the same module. Raises
    RunError when its weights are not those of its config, or not finite.
    """
    vae = load_frozen(part, AutoencoderKLQwenImage, dtype, file, of_wan)
    if vae.config.get("_spade"):  # trained by this program's vae_trainer
        load_object(SPADE_LOADER)(vae, part)
    return expect_one_frame(vae).requires_grad_(False)
