"""Parameter groups by learning rate: `train.lr_groups` and LoRA+.

Pure functions of names: they match the layers of a network against the patterns of the
job and return the groups. They build no optimizer and import no torch, so that a plan
can count the groups. `roles` calls them for a run, `toolkit.plan.memory_inputs` for a
plan.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass

from toolkit.config.sections.network import matching
from toolkit.config.sections.train import BASE, LORA_B_SUFFIX, LrGroupConfig
from toolkit.errors import UserError

SHOWN = 3
"""How many names a message gives as examples."""


@dataclass(frozen=True)
class LrGroup:
    """Parameters with one learning rate.

    >>> weights = ["blocks.0.lora_A.weight", "blocks.0.lora_B.weight"]
    >>> up = {"blocks.0.lora_B.weight"}
    >>> groups = build_param_groups(weights, str, lr=0.5, up=up, up_ratio=16)
    >>> [(group.lr, group.weights) for group in groups]
    [(0.5, ('blocks.0.lora_A.weight',)), (8.0, ('blocks.0.lora_B.weight',))]
    """

    name: str
    lr: float
    """Base learning rate; the schedule multiplies it."""

    weights: tuple[str, ...]


def group_of_layers(
    entries: Sequence[LrGroupConfig], layers: Iterable[str]
) -> dict[str, int]:
    """Layer -> index of the first entry that matches it; layers that none matches are
    left out.

    Raises UserError for an entry that gets no layer.
    """
    layers = list(layers)
    index_of: dict[str, int] = {}
    for index, entry in enumerate(entries):
        for layer in matching(entry.match, layers):
            index_of.setdefault(layer, index)
    for index, entry in enumerate(entries):
        if index not in index_of.values():
            what = "matches only layers that entries before it take. Put it before them, or leave it out."
            if not matching(entry.match, layers):
                examples = ", ".join(
                    map(repr, layers[:: max(1, len(layers) // SHOWN)][:SHOWN])
                )
                what = f"matches none of the {len(layers)} trained layers. It has to match whole names like {examples}."
            raise UserError(f"train.lr_groups[{index}].match: {entry.match!r} {what}")
    return index_of


def build_param_groups(
    weights: Iterable[str],
    layer_of: Callable[[str], str],
    lr: float,
    entries: Sequence[LrGroupConfig] = (),
    up: Container[str] = (),
    up_ratio: float = 1.0,
) -> list[LrGroup]:
    """The groups that have weights: the entries in their order, then the others; of
    each first those not in `up`.

    weights: names, whose order stays within a group. lr: `train.lr`. up: names of the
    up matrices; they learn at `up_ratio` times the rate of their group (1: at the
    same). Raises as `group_of_layers` does.
    """
    weights = list(weights)
    index_of = group_of_layers(entries, dict.fromkeys(map(layer_of, weights)))
    kinds = [(entry.label(), entry.rate(lr)) for entry in entries] + [(BASE, lr)]
    groups = []
    for index, (name, rate) in enumerate(kinds):
        group_weights = [
            weight
            for weight in weights
            if index_of.get(layer_of(weight), len(entries)) == index
        ]
        is_faster = {weight: up_ratio != 1 and weight in up for weight in group_weights}
        groups.append(
            LrGroup(
                name,
                rate,
                tuple(weight for weight in group_weights if not is_faster[weight]),
            )
        )
        groups.append(
            LrGroup(
                name + LORA_B_SUFFIX,
                rate * up_ratio,
                tuple(weight for weight in group_weights if is_faster[weight]),
            )
        )
    return [group for group in groups if group.weights]
