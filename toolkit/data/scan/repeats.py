"""Numbers at the beginning of folders' names that are probably not repeats: `01_anna`,
`2023_summer`, `512_faces`.

The convention `<repeats>_<name>` comes from kohya's sd-scripts. Real repeats are few,
different, and small. `folder_check` asks about other numbers, since a scan cannot
decide; the user answers with `num_repeats`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

REPEATS = re.compile(r"([0-9]+)_")
"""The beginning of a name that says how often its images are used per epoch."""

SIZES = frozenset(
    (
        *range(256, 1025, 64),
        720,
        1080,
        1152,
        1280,
        1344,
        1408,
        1440,
        1536,
        2048,
        2160,
        2560,
        3840,
        4096,
    )
)
"""Sides of training images, and of films, in pixels."""

MOST = 1000
"""Numbers from here on are never intended as repeats: a folder of one image would be a
whole run."""

_YEAR = r"(?:19|20)[0-9]{2}"
_MONTH = r"(?:0[1-9]|1[0-2])"
_DAY = r"(?:0[1-9]|[12][0-9]|3[01])"
_DATE = re.compile(rf"{_YEAR}(?:{_MONTH}(?:{_DAY})?)?|[0-9]{{2}}{_MONTH}{_DAY}")
"""`2024`, `202405`, `20240501`, `240501`."""

LEAST_IN_A_ROW = 3
"""Consecutive numbers that are a count. Two may be intended as repeats: `1_background`,
`2_character`."""


def probably_no_repeats(names: Collection[str]) -> str:
    """Why the numbers of neighbouring folders are probably not repeats, in words
    that follow "the numbers"; empty: they may be. names: of all of them; those without
    a number do not matter.

    >>> probably_no_repeats(["01_anna", "02_bob", "03_carl"])
    'count up'
    """
    matches = map(REPEATS.match, names)
    numbers = [match[1] for match in matches if match]
    values = sorted({int(number) for number in numbers})
    if any(_DATE.fullmatch(number) for number in numbers):
        return "look like dates"
    if any(value in SIZES for value in values):
        return "look like sizes in pixels"
    if any(value >= MOST for value in values):
        return "are larger than repeats are"
    in_a_row = (
        len(values) > 1
        and values[-1] - values[0] == len(values) - 1
        and len(values) == len(numbers)
    )
    if in_a_row and (
        len(values) >= LEAST_IN_A_ROW
        or any(number.startswith("0") for number in numbers)
    ):
        return "count up"
    if any(len(number) > 1 and number.startswith("0") for number in numbers):
        return "begin with 0"
    return ""


def ask_about(repeats: Mapping[str, int], why: str) -> str:
    """The question about numbers that are probably no repeats. repeats: of each folder,
    by its name; why: of `probably_no_repeats`."""
    named = [f"{name} ({count:,})" for name, count in repeats.items()]
    shown = ", ".join(named[:5])
    more = f" and {len(repeats) - 5:,} more" if len(repeats) > 5 else ""
    return (
        f"are the numbers of {shown}{more} repeats? They {why}, and each image is used as often per epoch. "
        "If they are part of the names, give 'num_repeats: 1'"
    )
