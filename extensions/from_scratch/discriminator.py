"""The discriminator: convolutions that judge overlapping patches of an image
(PatchGAN), with spectral normalisation.

Source: Isola et al., arXiv 1611.07004, section 3.2.2 (patches); Miyato et al., arXiv
1802.05957 (spectral norm).

It has no loss and no optimizer: `autoencoder_step` computes the losses, and `trainer`
makes the network and its role. `autoencoders` writes its weights next to the
autoencoder's.

Shape suffixes: B batch, H/W height and width in pixels, N patches."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from extensions.from_scratch.autoencoder_config import DISCRIMINATOR_FILE
from extensions.from_scratch.losses_config import patch_widths
from toolkit.errors import UserError
from toolkit.system.seeding import global_generator

logger = logging.getLogger(__name__)

SLOPE = 0.2
"""Slope of the leaky ReLU."""


class PatchDiscriminator(nn.Module):
    """Judges patches: above 0 for a real image, below 0 for a reconstruction.

    The vectors of the spectral norm change once per optimizer step (`after_step`), not
    in the forward pass: how often it runs, in halves of a batch or on several ranks,
    changes nothing.

    >>> network = PatchDiscriminator(channels=8, layers=2, seed=1)
    >>> network(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 36])
    """

    def __init__(self, channels: int, layers: int, seed: int) -> None:
        """channels: of the first layer. layers: that halve the sides. seed: of the
        initial weights."""
        super().__init__()
        widths = patch_widths(channels, layers)
        strides = [2] * layers + [1, 1]
        with global_generator(seed, "discriminator"):
            normed = [
                spectral_norm(
                    nn.Conv2d(before, after, kernel_size=4, stride=stride, padding=1)
                )
                for (before, after), stride in zip(
                    pairwise(widths), strides, strict=True
                )
            ]
        self.layers = nn.ModuleList(normed)
        self.eval()

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Judgements [B, N] of images in [-1, 1]."""
        x = pixels_B3HW
        for layer in self.layers[:-1]:
            x = nn.functional.leaky_relu(layer(x), SLOPE)
        judgements_B1HW: Tensor = self.layers[-1](x)
        return judgements_B1HW.flatten(1)

    @staticmethod
    def smallest(layers: int) -> int:
        """Pixels of the shortest side that this number of layers can judge.

        >>> PatchDiscriminator.smallest(layers=3)
        24
        """
        pixels: int = 3 * 2**layers
        return pixels

    def vectors(self) -> dict[str, Tensor]:
        """The vectors of the spectral norm by name: state that the optimizer does not
        know."""
        return dict(self.named_buffers())

    @torch.no_grad()
    def after_step(self, step_ok: Tensor) -> dict[str, Tensor]:
        """One power iteration of each layer where the step was taken (`step_ok`, 0-dim
        bool). Returns no metrics."""
        before = {name: buffer.clone() for name, buffer in self.named_buffers()}
        self.train()
        for layer in self._normed():
            layer.weight  # noqa: B018 - reading it in training mode is the iteration
        self.eval()
        for name, buffer in self.named_buffers():
            buffer.copy_(torch.where(step_ok.to(buffer.device), buffer, before[name]))
        return {}

    def _normed(self) -> Iterator[nn.Conv2d]:
        for layer in self.layers:
            assert isinstance(layer, nn.Conv2d)
            yield layer


def continue_discriminator(network: PatchDiscriminator, folder: Path) -> None:
    """Loads the discriminator that a run saved in the folder of its autoencoder, if the
    folder has one. Raises UserError for another size or a damaged file."""
    file = folder / DISCRIMINATOR_FILE
    if not file.is_file():
        return
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        remedy = "Copy it again, or move it away to begin with a new one."
        raise UserError(f"{file}: damaged discriminator ({error}). {remedy}") from error
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if shapes != expected:
        raise UserError(
            f"{file} is a discriminator of another size. Restore discriminator.channels and layers, or move the "
            "file away to begin with a new one."
        )
    network.load_state_dict(weights)
    logger.info(f"discriminator: continued from {file}")
