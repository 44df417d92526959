"""Video autoencoders that meet images: a third of the work of their convolutions.

Shape suffixes: B batch, C channels, T frames, H/W height and width."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn
from torch.nn.functional import conv2d

from toolkit.models.loading import ASKED_BY, block_import

with block_import("bitsandbytes", ASKED_BY):
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d

Module = TypeVar("Module", bound=nn.Module)


class OneFrameConv3d(QwenImageCausalConv3d):
    """The causal convolution of diffusers, with less work for a single frame.

    The frames before the first are zeros, so of the kernel's taps along time only the last one meets anything: it alone
    is used, as a two-dimensional convolution. The others get a gradient of 0, as they do in diffusers' own.
    """

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:  # x: [B, C, T, H, W]
        if x.shape[2] != 1 or cache_x is not None:
            return super().forward(x, cache_x)
        padding = self._padding[2], self._padding[0]
        return conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, self.stride[1:], padding)[:, :, None]


def expect_one_frame(vae: Module) -> Module:
    """The same autoencoder, whose causal convolutions do less for one frame. Numbers differ by rounding alone."""
    for layer in vae.modules():
        if type(layer) is QwenImageCausalConv3d:
            layer.__class__ = OneFrameConv3d
    return vae
