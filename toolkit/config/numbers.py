"""Texts that are meant as numbers -> how to write them."""

from __future__ import annotations

import re
from collections.abc import Callable

_COMMENT = r"\S(#|\s*//)"
_SIZE = r"\d+\s*[xX×]\s*\d+"
_POWER = r"(?:(\S+?)\s*[*x×]\s*)?10\s*(?:\^|\*\*)\s*(-?\d+)"
_GROUPED = r"[1-9]\d{0,2}(?:(?:,\d{3})+|(?: \d{3})+|(?:\.\d{3}){2,})"
_LIST = r"\d+(?:\s*[,;]\s*\d+)+"
_SIDES = r"([1-9]\d{1,4})\s*,\s*([1-9]\d{1,4})"
_DECIMAL_COMMA = r"([-+]?\d+),(\d+(?:[eE][-+]?\d+)?)"
_UNIT = r"([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*(?:%|[a-zA-Z]{2,6}|[,;])"


def number_remedy(text: str, whole: bool) -> str:
    """What to write instead of a text; empty where nothing is recognised. whole: a whole number is wanted."""
    if re.search(_COMMENT, text):
        return "A comment begins with a space and '#'."
    if re.search(_SIZE, text):
        return "Write one number; where several may stand, a list such as [512, 768]."
    readings: dict[str, Callable[[re.Match[str]], str]] = {
        _POWER: lambda found: f"{found[1] or 1}e{found[2]}",
        _GROUPED: lambda found: re.sub(r"\D", "", found[0]),
        r"(\d+(?:\.\d+)?)\s*[kK]": lambda found: f"{float(found[1]) * 1000:.0f}",
        _DECIMAL_COMMA if not whole else r"(?!)": lambda found: f"{found[1]}.{found[2]}",
        _UNIT: lambda found: found[1],
    }
    if whole and (sides := _sides(text)):
        return f"Write {sides[0]}." if len(set(sides)) == 1 else f"Write {sides} where a list may stand."
    found = ((read, re.fullmatch(pattern, text.strip())) for pattern, read in readings.items())
    meant = [read(match) for read, match in found if match][:1]
    if re.fullmatch(_LIST, text.strip()) and not (meant and not whole):
        numbers = re.split(r"\s*[,;]\s*", text.strip())
        if not any(number.startswith("0") for number in numbers):
            meant.append(f"[{', '.join(numbers)}] where a list may stand")
    return f"Write {', or '.join(meant)}." if meant else ""


def _sides(text: str) -> list[int]:
    """The sides of an image that a text lists, such as `512,768`, which does not mean 512768; else nothing."""
    found = re.fullmatch(_SIDES, text.strip())
    numbers = [int(number) for number in found.groups()] if found else []
    return numbers if all(number >= 64 and number % 8 == 0 for number in numbers) else []


def is_grouped(text: str) -> bool:
    """Whether a text is a number that many write for a thousand times as much: 2.000."""
    return re.fullmatch(r"[1-9]\d{0,2}\.\d{3}", text) is not None
