"""Whole numbers rounded up, exactly.

Example:
    >>> ceil_divide(7, 2), round_up(7, 4)
    (4, 8)
"""

from __future__ import annotations


def ceil_divide(count: int, size: int) -> int:
    """How many groups of `size` hold `count` things; the last may have fewer. size: at
    least 1.

    >>> ceil_divide(10, 4)
    3
    """
    return (count + size - 1) // size


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `number`. multiple: at least
    1.

    >>> round_up(10, 4)
    12
    """
    return ceil_divide(number, multiple) * multiple
