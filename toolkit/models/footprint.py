"""What of a model takes memory, counted in weights, tokens and pixels. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

AHEAD = 32
"""Micro-batches whose noise levels are announced at once."""

MOST_ROWS = 192
"""Noise levels whose rows a modulation table keeps; 4.4 MB each on the published model in bfloat16."""


@dataclass(frozen=True)
class Encoder:
    """A part that is needed before training, and for shuffled captions or samples during it."""

    linears: int
    """Weights that its number type of quantization concerns."""

    others: int
    unused: int = 0
    """Weights that are read with the rest, and let go."""

    def stored(self, bytes_per_linear: float, number_bytes: int) -> int:
        """Bytes at rest."""
        return int(self.linears * bytes_per_linear) + self.others * number_bytes


@dataclass(frozen=True)
class Footprint:
    """The facts of one model folder."""

    width: int
    """Numbers of a token between blocks."""

    blocks: int
    linears: int
    """Weights of the blocks' linear layers, which quantization concerns."""

    others: int
    """All other weights of the trained part."""

    largest_layer: int
    """Weights of the largest linear layer."""

    largest_of_tokens: int
    """The same of those that every token goes through."""

    tabulated: frozenset[str]
    """Linear layers that a table of their results can stand for, by full name."""

    tabulated_weights: int
    table_inputs: frozenset[str]
    """Layers of which the table is no longer right when they are trained."""

    text: Encoder
    vae: Encoder
    encode_numbers: int
    """Numbers in memory per pixel while the VAE encodes, at most."""

    decode_numbers: int
    text_token_numbers: int
    """Numbers in memory per text token while the text encoder works, at most."""

    text_width: int
    latent_numbers: float
    """Numbers per pixel of a cached latent."""

    pixels_per_token: int
    reference_pixels: int
    """Of a reference, unless it follows its target."""

    text_tokens: int
    """Around a prompt."""

    text_tokens_per_reference: int
    bytes_per_weight: Mapping[str | None, float]
    """Of quantized weights with their scales, by `model.qtype`."""

    def stored(self, weights: int, qtype: str | None, number_bytes: int) -> int:
        """Bytes of linear weights of the blocks at rest. qtype: None where they are not quantized."""
        return int(weights * (self.bytes_per_weight[qtype] if qtype else number_bytes))

    @property
    def row_numbers(self) -> int:
        """Numbers that a table holds per noise level: one per output of its layers."""
        return self.tabulated_weights // self.width
