"""Findings that the user has examined and does not want to see again.

The rules are in files next to the images; this module reads them and writes none.
`process` asks it for each finding. `lint_ignore.txt` in the folder of the images has a
line for each name or pattern, with the checks that are ignored:

    portrait_07.png: blurred, transparent   # meant so
    old_*.jpg                               # all checks
    *: same_caption                         # also of the folder itself

`portrait_07.lint` beside an image has `# lint: ignore`, or `# lint: ignore blurred,
transparent`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache

from extensions.tools.lint.checks import CHECKS
from toolkit.data.scan.captions import CaptionError, read_caption
from toolkit.errors import Diagnostic, UserError, did_you_mean

LIST = "lint_ignore.txt"
SUFFIX = ".lint"
_MARK = re.compile(r"#\s*lint:\s*ignore\b(?P<checks>[^#]*)")

Rule = tuple[str, frozenset[str]]
"""Pattern of names, and the checks that are ignored; empty: all."""


class Ignored:
    """Which findings are ignored. Each file of rules is read once.

    Example::

        ignored = Ignored()
        shown = [finding for finding in findings if finding not in ignored]
    """

    def __init__(self) -> None:
        self._listed = cache(_listed)
        self._beside = cache(_beside)

    def __contains__(self, finding: Diagnostic) -> bool:
        """Whether a finding is ignored. Raises UserError for a rule with the name of an
        unknown check."""
        folder = finding.place
        name = ""
        if not os.path.isdir(finding.place):
            folder, name = os.path.split(finding.place)
        rules = [*self._listed(folder)]
        if name:
            rules += self._beside(os.path.splitext(finding.place)[0] + SUFFIX)
        return any(_matches(rule, name, finding.check) for rule in rules)


def _matches(rule: Rule, name: str, check: str) -> bool:
    pattern, checks = rule
    return fnmatchcase(name, pattern) and (not checks or check in checks)


def _listed(folder: str) -> tuple[Rule, ...]:
    path = os.path.join(folder, LIST)
    return tuple(_rules_of(path)) if os.path.isfile(path) else ()


def _rules_of(path: str) -> Iterator[Rule]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        pattern, colon, checks = line.partition("#")[0].rpartition(":")
        pattern, checks = (pattern, checks) if colon else (checks, "")
        if pattern.strip():
            yield pattern.strip(), _checks(checks, f"{path}:{number}")


def _beside(path: str) -> tuple[Rule, ...]:
    if not os.path.isfile(path):
        return ()
    rules = [
        ("*", _checks(mark["checks"], path)) for mark in _MARK.finditer(_text(path))
    ]
    return tuple(rules)


def _text(path: str) -> str:
    try:
        return read_caption(path)
    except CaptionError as error:
        raise UserError(str(error)) from error


def _checks(text: str, place: str) -> frozenset[str]:
    names = re.split("[,\\s]+", text.strip()) if text.strip() else []
    for name in names:
        if name not in CHECKS:
            raise UserError(
                f"{place}: {name!r} is not a check. {did_you_mean(name, CHECKS)}"
            )
    return frozenset(names)
