"""SPADE: the latents scale and shift the normalised features of an autoencoder's
decoder, at each position.

At each norm, with x normalised (GroupNorm, RMS norm) and z the decoder's input, resized
to the size of x:

    output = x * (1 + gamma(z)) + beta(z)

gamma and beta are convolutions over one hidden layer. Both are zero at the start, so
adding them changes nothing. Source: Park et al., arXiv 1903.07291, eq. 1 and
figure 2; here the norms keep their own weights.

The modulations are a submodule `spade` of the autoencoder and work by hooks on its
decoder. All other modules keep the names and classes of diffusers, which reads the same
folder and decodes without SPADE.

`autoencoders` and `latent_flow.model` attach or load it, and `memory` attaches it to
fake tensors. Nothing is written here: `autoencoders` saves its weights.

Shape suffixes: B batch, Z channels of the decoder's input, C channels of a norm, H/W
height and width of the norm's input, h/w height and width of the latents. Tensors of
videos of one frame have a dimension of 1 before height and width."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from extensions.from_scratch.autoencoder_config import (
    SPADE_FILE,
    SPADE_HIDDEN,
    WITHOUT_NORMS,
    without_norms,
)
from toolkit.errors import RunError, UserError
from toolkit.models.loading import check_finite
from toolkit.system.seeding import global_generator

PREFIX = "spade."
"""Prefix of its weights in the autoencoder's state dict."""

NORMS = {"GroupNorm": "num_channels", "QwenImageRMS_norm": "gamma"}
"""Class of the norms that are modulated -> its attribute with the channels: a number,
or one value for each."""


class Modulation(nn.Module):
    """gamma and beta of one norm.

    >>> gamma, beta = Modulation(latent_channels=4, channels=8)(torch.ones(1, 4, 16, 16))
    >>> gamma.shape, int(gamma.count_nonzero())
    (torch.Size([1, 8, 16, 16]), 0)
    """

    def __init__(self, latent_channels: int, channels: int) -> None:
        super().__init__()
        hidden = min(channels, SPADE_HIDDEN)
        self.hidden = nn.Conv2d(latent_channels, hidden, 3, padding=1)
        self.gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.beta = nn.Conv2d(hidden, channels, 3, padding=1)
        for weights in (*self.gamma.parameters(), *self.beta.parameters()):
            nn.init.zeros_(weights)

    def forward(self, latents_BZHW: Tensor) -> tuple[Tensor, Tensor]:
        """gamma and beta [B, C, H, W] for latents of the size of the norm's input."""
        hidden_BNHW = relu(self.hidden(latents_BZHW))
        return self.gamma(hidden_BNHW), self.beta(hidden_BNHW)


class Spade(nn.Module):
    """The modulations of a decoder, by the names of its norms with _ for dots. Norms
    within attention have none.

    Example::

        attach_spade(vae, seed=1)  # makes `vae.spade`, whose hooks run in the decoder
        image = vae.decode(latents_BCHW).sample
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.of_norm = nn.ModuleDict()
        self._latents_BZhw = torch.empty(0)
        self._resized: dict[tuple[int, ...], Tensor] = {}
        decoder.register_forward_pre_hook(self._begin)
        for name, norm in decoder.named_modules():
            if type(norm).__name__ in NORMS and ".attentions." not in name:
                channels = getattr(norm, NORMS[type(norm).__name__])
                modulation = Modulation(
                    decoder.conv_in.in_channels,
                    channels if isinstance(channels, int) else len(channels),
                )
                self.of_norm[name.replace(".", "_")] = modulation
                norm.register_forward_hook(partial(self._modulate, modulation))
        decoder.register_forward_hook(self._end, always_call=True)

    def _begin(self, decoder: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        latents = inputs[0]
        self._latents_BZhw = latents[:, :, 0] if latents.ndim == 5 else latents

    def _end(self, decoder: nn.Module, inputs: Any, output: Any) -> None:
        self._latents_BZhw = torch.empty(0)
        self._resized = {}

    def _modulate(
        self, modulation: Modulation, norm: nn.Module, inputs: Any, normalised: Tensor
    ) -> Tensor:
        gamma_BCHW, beta_BCHW = modulation(self._of_size(tuple(normalised.shape[-2:])))
        if normalised.ndim == 5:
            gamma_BCHW = gamma_BCHW[:, :, None]
            beta_BCHW = beta_BCHW[:, :, None]
        modulated: Tensor = normalised + normalised * gamma_BCHW + beta_BCHW
        return modulated

    def _of_size(self, size: tuple[int, ...]) -> Tensor:
        """The latents at a norm's size; norms of one size share them."""
        if size not in self._resized:
            self._resized[size] = interpolate(
                self._latents_BZhw, size=size, mode="nearest"
            )
        return self._resized[size]


def attach_spade(autoencoder: Any, seed: int) -> None:
    """Gives an autoencoder of diffusers a `spade` that changes nothing yet, on its
    device.

    seed: of the hidden layers' weights; the autoencoder's own are not drawn from it.
    Raises UserError where the decoder has no norms.
    """
    kind = type(autoencoder).__name__
    if kind in WITHOUT_NORMS:
        raise UserError(f"model.spade: {without_norms(kind)}")
    with global_generator(seed, "spade"):
        spade = Spade(autoencoder.decoder)
    autoencoder.spade = spade.to(next(autoencoder.parameters()).device)


def load_spade(autoencoder: Any, folder: Path) -> None:
    """Gives an autoencoder the `spade` of its folder, in the dtype of its weights.

    Raises RunError where the file is missing, damaged or not of this autoencoder.
    """
    attach_spade(autoencoder, seed=0)
    file = folder / SPADE_FILE
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{file}: cannot be read ({error}), and config.json says that the decoder has it. Restore the file."
        ) from error
    expected = {
        name: tensor.shape for name, tensor in autoencoder.spade.state_dict().items()
    }
    if {name: tensor.shape for name, tensor in weights.items()} != expected:
        raise RunError(
            f"{file}: is not of the autoencoder beside it. Restore the file."
        )
    autoencoder.spade.load_state_dict(weights)
    check_finite(file, autoencoder.spade)
    autoencoder.spade.to(next(autoencoder.parameters()).dtype)
