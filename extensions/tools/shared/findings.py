"""The kinds of what `lint` finds, and one line for all findings of a kind.

`lint` prints the lines, and the page of a dataset shows them over small images. The
kinds are in `checks.toml`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple


class Check(NamedTuple):
    """The heading of a check's findings, and what to do about them.

    >>> CHECKS["blurred"].title, CHECKS["blurred"].remedy
    ('blurred images', 'Take a sharper one.')
    """

    title: str
    remedy: str
    many: str
    """One line for several findings, with their `{count}` and `{}` for each range."""

    numbers: str = ""
    """Pattern of a message whose groups are numbers, for the ranges of `many`."""


CHECKS = {
    name: Check(**row)
    for name, row in tomllib.loads(
        Path(__file__).with_name("checks.toml").read_text(encoding="utf-8")
    ).items()
}
"""Name -> the check, in the order of the report; `lint.checks` has the functions."""

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)")
_ALIKE = re.compile(r"shows what (.+) shows(?:, [a-z ]+)?")


class Kind(NamedTuple):
    """All findings of one check."""

    check: str
    files: dict[str, list[str]]
    """Path -> its messages."""

    @property
    def remedy(self) -> str:
        return CHECKS[self.check].remedy if self.check in CHECKS else ""

    @property
    def line(self) -> str:
        """All of them in one line: one as it was found, several with their count and
        from where to where their numbers go.

        >>> small = "is small: 9 x 9, {}% of the resolution 1024, and is not enlarged"
        >>> Kind("tiny", {str(i): [small.format(i)] for i in (42, 25)}).line
        '2 images are small: 25 to 42% of 1024'
        """
        messages = [message for each in self.files.values() for message in each]
        check = CHECKS.get(self.check, Check(self.check, "", "{count} findings"))
        if len(messages) == 1:
            path = next(iter(self.files))
            return f"{os.path.basename(path) or path}: {messages[0]}"
        found = filter(None, (re.search(check.numbers, each) for each in messages))
        columns = zip(*(match.groups() for match in found), strict=True)
        ranges = [_range(column) for column in columns]
        many = check.many if ranges else check.many.partition(": ")[0]
        return many.format(*ranges, count=len(self.files))

    @property
    def total(self) -> int:
        return sum(map(len, self.files.values()))

    def merged(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Messages that differ in their numbers only, as one with the ranges, and their
        files with their own messages.

        >>> files = {"a": ["loses 20%"], "b": ["loses 7%"], "c": ["is long"]}
        >>> [message for message, _ in Kind("aspect", files).merged()]
        ['loses 7 to 20%', 'is long']
        """
        like = dict(self.alike)
        alike: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for path, messages in self.files.items():
            for text in messages:
                rest = () if path in like else tuple(_NUMBER.split(text)[::2])
                alike.setdefault(rest, []).append((path, text))
        merged = []
        for rest, found in alike.items():
            numbers = zip(
                *(_NUMBER.findall(text) for _, text in found if rest), strict=True
            )
            parts = zip_longest(rest, map(_range, numbers), fillvalue="")
            merged.append(("".join(chain.from_iterable(parts)), found))
        return merged

    @property
    def alike(self) -> list[tuple[str, str]]:
        """Each image that shows what another one shows, and that one."""
        return [
            (path, other)
            for path, messages in self.files.items()
            for other in map(alike_in, messages)
            if other and self.check == "duplicate"
        ]


def alike_in(message: str) -> str:
    """The image that a finding of `duplicate` names; empty for other findings.

    >>> alike_in("shows what cats/a.png shows, mirrored")
    'cats/a.png'
    """
    match = _ALIKE.fullmatch(message)
    return match[1] if match else ""


def kinds(findings: Iterable[tuple[str, str, str]]) -> list[Kind]:
    """Findings (check, path, message) by their kinds, in the order of the report.

    >>> [kind.check for kind in kinds([("tiny", "a", "x"), ("unused", "b", "y")])]
    ['unused', 'tiny']
    """
    found: dict[str, dict[str, list[str]]] = {name: {} for name in CHECKS}
    for check, path, message in findings:
        files = found.setdefault(check, {})
        files.setdefault(path, []).append(message)
    return [Kind(check, files) for check, files in found.items() if files]


def _range(values: Iterable[str]) -> str:
    """The lowest and the highest of numbers, as they were written."""
    ordered = sorted(set(values), key=lambda text: float(text.replace(",", "")))
    return " to ".join(dict.fromkeys((ordered[0], ordered[-1])))
