"""Parameter groups by learning rate: LoRA+.

A pure function of names. It builds no optimizer and imports no torch. `roles` calls it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from toolkit.config.sections.train import BASE, LORA_B_SUFFIX


@dataclass(frozen=True)
class LrGroup:
    """Parameters with one learning rate.

    >>> weights = ["blocks.0.lora_A.weight", "blocks.0.lora_B.weight"]
    >>> up = {"blocks.0.lora_B.weight"}
    >>> groups = build_param_groups(weights, lr=0.5, up=up, up_ratio=16)
    >>> [(group.lr, group.weights) for group in groups]
    [(0.5, ('blocks.0.lora_A.weight',)), (8.0, ('blocks.0.lora_B.weight',))]
    """

    name: str
    lr: float
    """Base learning rate; the schedule multiplies it."""

    weights: tuple[str, ...]


def build_param_groups(
    weights: Iterable[str], lr: float, up: Container[str] = (), up_ratio: float = 1.0
) -> list[LrGroup]:
    """The groups that have weights: first those not in `up`.

    weights: names, whose order stays within a group. lr: `train.lr`. up: names of the
    up matrices; they learn at `up_ratio` times the rate (1: at the same).
    """
    is_faster = {weight: up_ratio != 1 and weight in up for weight in weights}
    slow = tuple(weight for weight, faster in is_faster.items() if not faster)
    fast = tuple(weight for weight, faster in is_faster.items() if faster)
    groups = (
        LrGroup(BASE, lr, slow),
        LrGroup(BASE + LORA_B_SUFFIX, lr * up_ratio, fast),
    )
    return [group for group in groups if group.weights]
