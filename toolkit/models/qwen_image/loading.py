"""Reads transformer and VAE of a model folder of the 20 B family, and replaces some of
their layers by ones that do the same with less work.

Every size comes from the config files. The reading itself is in
`toolkit.models.loading`, the text encoder in `vl_prompts`. Called by `model`; the
trainer of autoencoders uses `expect_one_frame`.

Shape suffixes: B batch, C channels, T frames, H/W height and width."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    QwenImageCausalConv3d,
)
from torch import Tensor, nn
from torch.nn.functional import conv2d

from toolkit.models.encoder_weights import of_wan
from toolkit.models.families import ModelLoadOptions
from toolkit.models.loading import (
    load_blockwise,
    load_frozen,
)
from toolkit.models.qwen_image.forward import with_fused_norms, with_shared_projections
from toolkit.registry import VAE_ADDITIONS, load_needed

Module = TypeVar("Module", bound=nn.Module)

TEXT_ENCODER = "Qwen2_5_VLForConditionalGeneration"

TABULATED = ("img_mod", "txt_mod")
"""Parts of a block that a table can replace: of the image stream, and of the text
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
    """The VAE with its trained additions (`VAE_ADDITIONS`), frozen, on the CPU.

    file: see `load_frozen`; decoder: see `ModelLoadOptions`. They have the names of
    diffusers or of Wan's VAE, which is the same module. Raises RunError when the
    weights do not fit its config, or are not finite.
    """
    vae = load_frozen(part, AutoencoderKLQwenImage, dtype, file, of_wan, decoder)
    for key, load_addition in VAE_ADDITIONS.items():
        if vae.config.get(key):
            load_needed(load_addition, f"the VAE in '{part}' ('{key}' in its config)")(
                vae, part
            )
    return expect_one_frame(vae).requires_grad_(False)


class OneFrameConv3d(QwenImageCausalConv3d):
    """The causal convolution of diffusers, with less work for a single frame.

    The frames before the first are zeros. Only the last of the kernel's taps along time
    meets other values, so it alone is used, as a two-dimensional convolution. The other
    taps get a gradient of 0, as in diffusers' own convolution.

    >>> OneFrameConv3d(3, 8, 3, padding=1)(torch.zeros(1, 3, 1, 4, 4)).shape
    torch.Size([1, 8, 1, 4, 4])
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
    """The same autoencoder with `OneFrameConv3d`. Its results differ only by
    rounding."""
    for layer in vae.modules():
        if type(layer) is QwenImageCausalConv3d:
            layer.__class__ = OneFrameConv3d
    return vae
