"""Selects the layers that an adapter is attached to, by their names.

It knows only names: `Network.trainable_modules` lists the layers that a model offers.
Raises an error or gives warnings where a choice fits no layer. Called by the plan, by
the trainer, and by tools that work block by block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from toolkit.config.sections.network import NetworkConfig, matching
from toolkit.errors import UserError

_BLOCK = re.compile(r"blocks[._](\d+)[._]")


def block_in(name: str) -> int | None:
    """The number of the block in the name of a layer, or of a tensor in a file; None
    where the name has no block.

    >>> block_in("transformer_blocks.3.attn.to_q")
    3
    """
    match = _BLOCK.search(name)
    return int(match[1]) if match else None


def select_target_modules(
    network: NetworkConfig, names: Sequence[str], usual: str = ""
) -> list[str]:
    """The names that a `network:` section chooses: those that contain one of
    `only_if_contains` (if any is given), none of `ignore_if_contains`, and pass.

    A name passes when an include pattern matches all of it, or when exclude patterns
    are given and none matches; without either all pass. Of layers that are neither
    matched by an include pattern nor by `only_if_contains`, only the usual ones pass.
    usual: pattern of these (`ModelFacts.lora_layers`); empty: all. Raises UserError
    when no layer is left, because a run without trained layers is a mistake; where none
    is usual, the family's.

    >>> network = NetworkConfig(type="lora", include_patterns=[".*to_q"])
    >>> select_target_modules(network, ["blocks.0.to_q", "blocks.0.to_k"])
    ['blocks.0.to_q']
    """
    include_patterns = network.include_patterns
    exclude_patterns = network.exclude_patterns
    only_if_contains = network.network_kwargs.only_if_contains
    included = {
        name for pattern in include_patterns for name in matching(pattern, names)
    }
    excluded = {
        name for pattern in exclude_patterns for name in matching(pattern, names)
    }

    def is_usual(name: str) -> bool:
        return not usual or re.fullmatch(usual, name) is not None

    def is_chosen(name: str) -> bool:
        if only_if_contains and not any(part in name for part in only_if_contains):
            return False
        if any(part in name for part in network.network_kwargs.ignore_if_contains):
            return False
        if name in included:
            return True
        if exclude_patterns:
            return name not in excluded and is_usual(name)
        return not include_patterns and (bool(only_if_contains) or is_usual(name))

    chosen = [name for name in names if is_chosen(name)]
    if not chosen and not any(map(is_usual, names)):
        raise UserError(
            f"lora_layers of the model's family: {usual!r} matches the whole name of no layer, such as {names[0]!r}. "
            "Change it in the family (docs/extending.md)."
        )
    if not chosen:
        raise UserError(_nothing_chosen(network, names[0]))
    return chosen


def _nothing_chosen(network: NetworkConfig, example: str) -> str:
    """The error where a section chooses no layer. example: the name of a layer."""
    kwargs = network.network_kwargs
    texts = "only_if_contains / ignore_if_contains"
    outcome = f"leave no layer to train. Layer names look like {example!r}."
    if not (network.include_patterns or network.exclude_patterns):
        return f"network.network_kwargs: {texts} {outcome}"
    with_texts = (
        f" with {texts}" if kwargs.only_if_contains or kwargs.ignore_if_contains else ""
    )
    patterns = f"include_patterns / exclude_patterns{with_texts}"
    return f"network: {patterns} {outcome} A pattern has to match the whole name."


def unused_choices(network: NetworkConfig, names: Sequence[str]) -> Iterator[str]:
    """A line for each text or pattern of a `network:` section that fits no layer."""
    for key in ("include_patterns", "exclude_patterns"):
        for pattern in getattr(network, key):
            if not matching(pattern, names):
                wide = f".*{pattern}.*"
                remedy = (
                    f"A pattern has to match the whole name. Write {wide!r}."
                    if matching(wide, names)
                    else f"Names look like {names[0]!r}."
                )
                yield f"network.{key}: {pattern!r} matches no layer. {remedy}"
    included, excluded = (
        {name for pattern in patterns for name in matching(pattern, names)}
        for patterns in (network.include_patterns, network.exclude_patterns)
    )
    others = len(set(names) - included - excluded)
    if included and excluded and not included & excluded and others:
        yield (
            "network.include_patterns: has no effect beside exclude_patterns: it only brings back layers that those "
            f"leave out, and matches none of them. {others} further layers are trained. Leave one of the two out."
        )
    for key in ("only_if_contains", "ignore_if_contains"):
        for part in getattr(network.network_kwargs, key):
            if not any(part in name for name in names):
                yield f"network.network_kwargs.{key}: no layer's name contains {part!r}. They look like {names[0]!r}."
