"""How much of the change that a file means a reader applies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

EXACT = 1e-6
"""Relative error up to which a cell counts as exact: float32 arithmetic in another
order."""

ONE_STRENGTH = 1e-3
"""Relative error up to which a change counts as the meant one at another strength."""


@dataclass(frozen=True)
class Cell:
    """What one reader makes of one file."""

    outcome: str
    """exact, strength, shape, nothing, error, refused, or absent: the reader cannot be
    asked."""

    strength: float | None = None
    """Least-squares factor of the applied change on the meant one, over all layers."""

    error: float | None = None
    """Norm of the difference to the meant change over the norm of the meant change."""

    said: str = ""
    """The message of an error or refusal, shortened."""


def compare(applied: Mapping[str, Tensor], meant: Mapping[str, Tensor]) -> Cell:
    """The cell of a change that was applied without an error. Both by the name of a
    weight or bias; float32."""
    product, square, applied_square = 0.0, 0.0, 0.0
    for name in meant.keys() | applied.keys():
        wanted, got = meant.get(name), applied.get(name)
        if wanted is not None:
            square += float(wanted.double().square().sum())
        if got is not None:
            applied_square += float(got.double().square().sum())
        if wanted is not None and got is not None:
            product += float((wanted.double() * got.double()).sum())
    if square == 0.0:
        raise ValueError(
            "the file means no change at all, so there is nothing to compare with"
        )
    strength = product / square
    if applied_square == 0.0:
        return Cell("nothing", 0.0, 1.0)
    error = math.sqrt(_difference(applied, meant, 1.0) / square)
    if error <= EXACT:
        return Cell("exact", strength, error)
    rest = math.sqrt(_difference(applied, meant, strength) / applied_square)
    return Cell("strength" if rest <= ONE_STRENGTH else "shape", strength, error)


def _difference(
    applied: Mapping[str, Tensor], meant: Mapping[str, Tensor], strength: float
) -> float:
    """Square of the norm of applied - strength * meant."""
    total = 0.0
    for name in meant.keys() | applied.keys():
        wanted, got = meant.get(name), applied.get(name)
        if wanted is None:
            assert got is not None
            total += float(got.double().square().sum())
        elif got is None:
            total += strength**2 * float(wanted.double().square().sum())
        else:
            total += float((got.double() - strength * wanted.double()).square().sum())
    return total
