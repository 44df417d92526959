"""Few combinations in which every two values that go together meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heapreplace
from itertools import combinations, product
from typing import Any

Row = Mapping[str, Any]


def pairwise(
    axes: Mapping[str, Sequence[Any]], allowed: Callable[[Row], bool]
) -> list[dict[str, Any]]:
    """Rows with one value of each axis, all `allowed`, that hold every pair which any
    allowed row holds.

    Greedy: the row with the most pairs not yet held comes next. Deterministic.
    """
    rows = [
        row
        for values in product(*axes.values())
        if allowed(row := dict(zip(axes, values, strict=True)))
    ]
    pairs = [_pairs(row) for row in rows]
    missing = set().union(*pairs)
    chosen = []
    # What a row would bring only shrinks, so that an old count is an upper bound: few
    # are counted anew for each choice.
    bounds = [(-len(found), index) for index, found in enumerate(pairs)]
    heapify(bounds)
    while missing:
        index = bounds[0][1]
        entry = (-len(missing.intersection(pairs[index])), index)
        if heapreplace(bounds, entry) == entry:
            chosen.append(rows[index])
            missing.difference_update(pairs[index])
    return chosen


def _pairs(row: Row) -> list[tuple]:
    return list(combinations(row.items(), 2))
