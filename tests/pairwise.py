"""Few combinations in which every two values that go together meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

Row = Mapping[str, Any]


def pairwise(axes: Mapping[str, Sequence[Any]], allowed: Callable[[Row], bool]) -> list[dict[str, Any]]:
    """Rows with one value of each axis, all `allowed`, that hold every pair which any allowed row holds.

    Greedy: the row with the most pairs not yet held comes next. Deterministic.
    """
    rows = [row for values in product(*axes.values()) if allowed(row := dict(zip(axes, values, strict=True)))]
    missing = {pair for row in rows for pair in _pairs(row)}
    chosen = []
    while missing:
        best = max(rows, key=lambda row: len(missing.intersection(_pairs(row))))
        chosen.append(best)
        missing.difference_update(_pairs(best))
    return chosen


def _pairs(row: Row) -> list[tuple]:
    return list(combinations(row.items(), 2))
