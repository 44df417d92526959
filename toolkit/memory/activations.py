"""How much of a step's memory each level of checkpointing takes, by arithmetic, and the roomiest level that fits.

Imports no torch. One unit is the memory of what a block hands to the next: tokens x width numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

UNITS = {"none": 28, "cheap": 11, "keep_attention": 2, "full": 1, "full_offload": 0}
"""Units that each block keeps for the backward pass; measured with a LoRA on all linear layers."""

OF_DROPOUT = 12
"""Further units of `none` where an adapter leaves out inputs: each layer keeps its own and a mask."""

OF_GRADIENTS = 17
"""Units that a block takes on the way back beside what it keeps, or has computed again."""

MARGIN = 0.08
"""Share of the free memory that is left alone: the allocator cannot use every gap."""


@dataclass(frozen=True)
class Work:
    """What decides the memory of a step's activations."""

    tokens: int
    """Of all items of the largest batch: pictures, references and text."""

    width: int
    """Numbers of a token between blocks."""

    blocks: int
    number_bytes: int
    """2 in half precision, 4 in float32."""

    dropout: bool = False
    everything: float = UNITS["none"]
    """Units that a block keeps with `none`; other kinds of networks than LoRA keep more."""


def activation_bytes(level: str, work: Work) -> int:
    """Peak of a forward and backward pass above the weights, with this level of CHECKPOINTING_LEVELS."""
    everything = work.everything + (OF_DROPOUT if work.dropout else 0)
    kept = everything if level == "none" else UNITS[level]
    at_work = max(0, everything + OF_GRADIENTS - kept)
    return int((work.blocks * kept + at_work) * work.tokens * work.width * work.number_bytes)


def roomiest(levels: Iterable[str], free: int, work: Work) -> str:
    """The first of `levels` (from the fastest to the smallest) that fits into `free` bytes, or the last."""
    levels = list(levels)
    return next((level for level in levels if activation_bytes(level, work) <= (1 - MARGIN) * free), levels[-1])
