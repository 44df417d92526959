"""Whole numbers rounded up."""

from __future__ import annotations

from math import ceil

import pytest

from toolkit.rounding import ceil_divide, round_up


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 2**62 + 1])
def test_numbers_are_rounded_up_exactly(count: int) -> None:
    """Where floats are exact, as math.ceil rounds them; beyond, as whole numbers."""
    assert ceil_divide(count, 1) == count
    assert ceil_divide(count, 7) * 7 - count in range(7)
    assert round_up(count, 7) % 7 == 0 and 0 <= round_up(count, 7) - count < 7
    if count < 2**50:
        assert ceil_divide(count, 7) == ceil(count / 7)
