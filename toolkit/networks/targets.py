"""Selects the layers that an adapter is attached to."""

from __future__ import annotations

import re
from collections.abc import Sequence

from toolkit.config.network import NetworkConfig
from toolkit.errors import UserError


def select_target_modules(network: NetworkConfig, names: Sequence[str]) -> list[str]:
    """The names that a `network:` section chooses."""
    kwargs = network.network_kwargs
    return select_targets(
        names,
        kwargs.only_if_contains,
        kwargs.ignore_if_contains,
        network.include_patterns,
        network.exclude_patterns,
    )


def select_targets(
    names: Sequence[str],
    only_if_contains: Sequence[str] = (),
    ignore_if_contains: Sequence[str] = (),
    include_patterns: Sequence[str] = (),
    exclude_patterns: Sequence[str] = (),
) -> list[str]:
    """The names that contain one of `only_if_contains` (if any is given), none of `ignore_if_contains`, and pass.

    A name passes when an include pattern matches all of it, or when exclude patterns are given and none matches;
    without either all pass. Raises UserError when nothing is left: training nothing is never meant.
    """
    chosen = [
        name
        for name in names
        if (not only_if_contains or any(part in name for part in only_if_contains))
        and not any(part in name for part in ignore_if_contains)
        and _passes(name, include_patterns, exclude_patterns)
    ]
    if not chosen:
        patterns = bool(include_patterns or exclude_patterns)
        raise UserError(
            ("network: include_patterns / exclude_patterns" if patterns else "network.network_kwargs:")
            + (" with" if patterns and (only_if_contains or ignore_if_contains) else "")
            + (" only_if_contains / ignore_if_contains" if only_if_contains or ignore_if_contains else "")
            + f" leave no layer to train. Layer names look like {names[0]!r}."
            + (" A pattern has to match the whole name." if patterns else "")
        )
    return chosen


def _passes(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    if any(re.fullmatch(pattern, name) for pattern in include):
        return True
    return not any(re.fullmatch(pattern, name) for pattern in exclude) if exclude else not include
