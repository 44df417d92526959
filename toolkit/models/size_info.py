"""Sizes of a model for the memory estimate: parameters, tokens and pixels. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LOOKAHEAD_BATCHES = 32
"""Micro-batches whose timesteps are prefetched at once."""

MOST_ROWS = 192
"""Timesteps that a modulation cache keeps; 4.4 MB each on the published model in bfloat16."""


@dataclass(frozen=True)
class EncoderSize:
    """An encoder, needed before training, and during it for shuffled captions or samples."""

    linear_params: int
    """Parameters that can be quantized."""

    other_params: int
    unused: int = 0
    """Parameters that are read with the rest, and freed."""

    def stored(self, bytes_per_linear: float, number_bytes: int) -> int:
        """Bytes of the parameters in memory."""
        return int(self.linear_params * bytes_per_linear) + self.other_params * number_bytes


@dataclass(frozen=True)
class ModelSizeInfo:
    """The sizes of one model folder."""

    width: int
    """Hidden size of the transformer: channels per token."""

    blocks: int
    linear_params: int
    """Parameters of the blocks' linear layers, which can be quantized."""

    other_params: int
    """All other parameters of the trained part."""

    largest_layer: int
    """Parameters of the largest linear layer."""

    largest_of_tokens: int
    """Parameters of the largest linear layer that processes every token."""

    modulation_layers: frozenset[str]
    """Full names of the linear layers whose outputs the modulation cache can hold."""

    tabulated_weights: int
    table_inputs: frozenset[str]
    """Layers that must not be trained with the modulation cache."""

    text: EncoderSize
    vae: EncoderSize
    encode_numbers: int
    """Largest number of elements per pixel while the VAE encodes."""

    decode_numbers: int
    text_token_numbers: int
    """Largest number of elements per text token in the text encoder."""

    text_width: int
    latent_numbers: float
    """Elements of a cached latent per pixel."""

    pixels_per_token: int
    reference_pixels: int
    """Pixels of a control image, unless `match_target_res` is on."""

    text_tokens: int
    """Text tokens of the template around a prompt."""

    text_tokens_per_reference: int
    bytes_per_weight: Mapping[str | None, float]
    """Bytes per quantized weight with its scales, by `model.qtype`."""

    def stored(self, weights: int, qtype: str | None, number_bytes: int) -> int:
        """Bytes of `weights` linear weights of the blocks in memory. qtype: None where they are not quantized."""
        return int(weights * (self.bytes_per_weight[qtype] if qtype else number_bytes))

    @property
    def row_numbers(self) -> int:
        """Elements of the modulation cache per timestep: one per output of its layers."""
        return self.tabulated_weights // self.width
