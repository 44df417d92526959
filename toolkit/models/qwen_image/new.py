"""Makes a transformer with random weights that fits the encoders of a model folder.

It writes nothing and trains nothing: the trainer of new models does. Called by
`QwenImageFamily.new_network`; `qwen_image21.new` shares the constants and `rope_axes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from torch import nn

from toolkit.config.sections.model_files import read_model_json
from toolkit.errors import UserError
from toolkit.models.from_config import build
from toolkit.models.qwen_image.sizes import LATENT_CHANNELS, LATENT_SCALE, PATCH

ARGUMENTS = "transformer"
"""Key of the arguments, for messages."""

HEAD_DIM = 128
"""Channels of an attention head of the published model."""


def new_transformer(
    folder: Path, arguments: Mapping[str, Any]
) -> QwenImageTransformer2DModel:
    """A transformer with these arguments of diffusers. Other arguments are chosen to
    fit the VAE and text encoder in `folder`.

    Draws from torch's global generator. Modulations and the output start at zero, so
    that each block adds nothing and the first prediction is 0 (adaLN-Zero: Peebles and
    Xie 2023, https://arxiv.org/abs/2212.09748, section 3.2). Raises UserError for
    arguments that the class does not take, and for an autoencoder with other latents
    than the family's.
    """
    vae = read_model_json(folder / "vae" / "config.json")
    text = read_model_json(folder / "text_encoder" / "config.json")
    channels = vae.get("z_dim", LATENT_CHANNELS)
    levels = vae.get("dim_mult", [1, 2, 4, 4])
    if channels != LATENT_CHANNELS or 2 ** (len(levels) - 1) != LATENT_SCALE:
        raise UserError(
            f"vae: its latents have {channels} channels and {2 ** (len(levels) - 1)} pixels along a side; this family "
            f"has {LATENT_CHANNELS} and {LATENT_SCALE}. Train an AutoencoderKLQwenImage with z_dim {LATENT_CHANNELS} "
            "and a dim_mult of four levels."
        )
    fitting = {
        "in_channels": channels * PATCH**2,
        "out_channels": channels,
        "joint_attention_dim": text.get("text_config", text)["hidden_size"],
        "axes_dims_rope": rope_axes(arguments.get("attention_head_dim", HEAD_DIM)),
    }
    transformer = build(
        QwenImageTransformer2DModel, {**fitting, **arguments}, ARGUMENTS
    )
    blocks = transformer.transformer_blocks
    modulations = [layer for one in blocks for layer in (one.img_mod, one.txt_mod)]
    zero_(*modulations, transformer.norm_out.linear, transformer.proj_out)
    return transformer


@torch.no_grad()
def zero_(*parts: nn.Module) -> None:
    """Sets all weights of these parts to zero."""
    for part in parts:
        for parameter in part.parameters():
            parameter.zero_()


def rope_axes(head_dim: int) -> tuple[int, int, int]:
    """The channels of a head for the positions of frame, row and column: about an
    eighth for the frame, as published, and even numbers. head_dim: a multiple of 4.

    >>> rope_axes(128)
    (16, 56, 56)
    """
    if not isinstance(head_dim, int) or head_dim < 8 or head_dim % 4:
        raise UserError(
            f"{ARGUMENTS}.attention_head_dim: {head_dim!r} is not a multiple of 4 of at least 8."
        )
    frame = max(4, head_dim // 8 // 4 * 4)
    side = (head_dim - frame) // 2
    return frame, side, side
