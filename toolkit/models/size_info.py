"""What of a model takes memory, counted in weights, tokens and pixels. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LOOKAHEAD_BATCHES = 32
"""Micro-batches whose noise levels are announced at once."""

MOST_ROWS = 192
"""Noise levels whose rows a modulation table keeps; 4.4 MB each on the published model in bfloat16."""


@dataclass(frozen=True)
class EncoderSize:
    """A part that is needed before training, and for shuffled captions or samples during it."""

    linear_params: int
    """Weights that its dtype of quantization concerns."""

    other_params: int
    unused: int = 0
    """Weights that are read with the rest, and let go."""

    def stored(self, bytes_per_linear: float, number_bytes: int) -> int:
        """Bytes at rest."""
        return int(self.linear_params * bytes_per_linear) + self.other_params * number_bytes


@dataclass(frozen=True)
class ModelSizeInfo:
    """The facts of one model folder."""

    width: int
    """Hidden size of the transformer: channels per token."""

    blocks: int
    linear_params: int
    """Weights of the blocks' linear layers, which quantization concerns."""

    other_params: int
    """All other weights of the trained part."""

    largest_layer: int
    """Weights of the largest linear layer."""

    largest_of_tokens: int
    """The same of those that every token goes through."""

    modulation_layers: frozenset[str]
    """Linear layers that a table of their results can stand for, by full name."""

    tabulated_weights: int
    table_inputs: frozenset[str]
    """Layers of which the table is no longer right when they are trained."""

    text: EncoderSize
    vae: EncoderSize
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
    """Pixels of a control image, unless `match_target_res` is on."""

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
