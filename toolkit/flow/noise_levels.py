"""`train.noise_levels_per_sample`: how many noise levels of an image share one pass over its text and references.
Imports no torch.

A model can do so whose text and references see neither the target nor its noise level (`ModelFacts.shares_prefix`): the
sequence is the prefix and K noisy targets, each of which sees the prefix and itself. The gradient is that of K passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

NoiseLevels = int | tuple[int, ...] | Literal["auto"]

MOST_NOISE_LEVELS = 32

AUTO_LEVELS = 4
"""Levels that `auto` takes where text and references are at least as long as the target."""


def levels_of(setting: NoiseLevels, references: int, prefix: int, target: int) -> int:
    """Noise levels of an image with so many references, prefix tokens (text and references) and target tokens."""
    if setting == "auto":
        return AUTO_LEVELS if prefix >= target else 1
    return setting if isinstance(setting, int) else setting[min(references, len(setting) - 1)]


def most_levels(setting: NoiseLevels) -> int:
    """The largest number that an image may have."""
    if setting == "auto":
        return AUTO_LEVELS
    return setting if isinstance(setting, int) else max(setting)


def cost_of(levels: int, prefix: int, target: int) -> float:
    """Tokens of one pass with so many levels, as a share of those of as many passes."""
    return (prefix + levels * target) / (levels * (prefix + target))


def describe(found: Sequence[tuple[int, int, float]]) -> str:
    """A plan's line. found: references, levels and `cost_of` of each kind of image."""
    said = []
    for references, levels, cost in sorted(set(found)):
        what = f"{references} reference{'s' * (references != 1)}"
        said.append(f"{what}: {levels} levels cost {cost:.2f} of {levels} passes" if levels > 1 else f"{what}: 1 level")
    return f"noise levels per sample: {'; '.join(said)}"
