"""Reads the parts of a Qwen-Image-Edit folder, each when it is needed; every size comes
from its config files.

Shape suffixes: B batch, C channels, T frames, H/W height and width."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from toolkit.models.encoder_weights import of_wan
from toolkit.models.families import ModelLoadOptions
from toolkit.models.loading import (
    ASKED_BY,
    block_import,
    load_blockwise,
    load_frozen,
    with_decoder,
)
from toolkit.models.qwen_image.forward import with_fused_norms, with_shared_projections
from toolkit.registry import VAE_ADDITIONS, load_needed

# diffusers would import it only to know that it is there
with block_import("bitsandbytes", ASKED_BY):
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
        QwenImageCausalConv3d,
    )

Module = TypeVar("Module", bound=nn.Module)

TEXT_ENCODER = "Qwen2_5_VLForConditionalGeneration"

TABULATED = ("img_mod", "txt_mod")
"""Parts of a block that a table can stand for: of the image stream, of the text
stream."""


def load_transformer(options: ModelLoadOptions) -> QwenImageTransformer2DModel:
    """The transformer of a model folder; see `load_blockwise`."""
    return with_shared_projections(
        with_fused_norms(
            load_blockwise(options, QwenImageTransformer2DModel, TABULATED)
        )
    )


def load_vae(
    part: Path,
    dtype: torch.dtype,
    file: Path | None = None,
    decoder: Path | None = None,
) -> AutoencoderKLQwenImage:
    """The VAE with what is trained beside it, frozen, on the CPU.

    file: see `load_frozen`; decoder: see `ModelLoadOptions`. Their names are those of
    diffusers or of Wan's VAE, which is the same module. Raises RunError when the
    weights are not those of its config, or not finite.
    """
    vae = load_frozen(part, AutoencoderKLQwenImage, dtype, file, of_wan)
    if decoder:
        vae = with_decoder(vae, decoder, dtype, of_wan)
    for key, load_addition in VAE_ADDITIONS.items():
        if vae.config.get(key):
            load_needed(load_addition, f"the VAE in '{part}' ('{key}' in its config)")(
                vae, part
            )
    return expect_one_frame(vae).requires_grad_(False)


class OneFrameConv3d(QwenImageCausalConv3d):
    """The causal convolution of diffusers, with less work for a single frame.

    The frames before the first are zeros, so of the kernel's taps along time only the
    last one meets anything: it alone is used, as a two-dimensional convolution. The
    others get a gradient of 0, as they do in diffusers' own.
    """

    def forward(
        self, x: Tensor, cache_x: Tensor | None = None
    ) -> Tensor:  # x: [B, C, T, H, W]
        if x.shape[2] != 1 or cache_x is not None:
            found_BCTHW: Tensor = super().forward(x, cache_x)
            return found_BCTHW
        padding = self._padding[2], self._padding[0]
        return conv2d(
            x[:, :, 0], self.weight[:, :, -1], self.bias, self.stride[1:], padding
        )[:, :, None]


def expect_one_frame(vae: Module) -> Module:
    """The same autoencoder, whose causal convolutions do less for one frame. Numbers
    differ by rounding alone."""
    for layer in vae.modules():
        if type(layer) is QwenImageCausalConv3d:
            layer.__class__ = OneFrameConv3d
    return vae
