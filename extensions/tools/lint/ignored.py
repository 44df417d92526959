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
from fnmatch import fnmatchcase
from functools import cache

from extensions.tools.lint.config import name_fault
from toolkit.data.scan.captions import CaptionError, read_caption
from toolkit.errors import Diagnostic, UserError

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
        place = finding.place
        folder, name = (place, "") if os.path.isdir(place) else os.path.split(place)
        rules = self._listed(os.path.join(folder, LIST))
        if name:
            rules += self._beside(os.path.splitext(place)[0] + SUFFIX)
        return any(
            fnmatchcase(name, pattern) and (not checks or finding.check in checks)
            for pattern, checks in rules
        )


def _listed(path: str) -> tuple[Rule, ...]:
    rules = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        pattern, colon, checks = line.partition("#")[0].rpartition(":")
        pattern, checks = (pattern, checks) if colon else (checks, "")
        if pattern.strip():
            rules.append((pattern.strip(), _checks(checks, f"{path}:{number}")))
    return tuple(rules)


def _beside(path: str) -> tuple[Rule, ...]:
    marks = _MARK.finditer(_text(path))
    return tuple(("*", _checks(mark["checks"], path)) for mark in marks)


def _text(path: str) -> str:
    """Empty where there is no such file."""
    try:
        return read_caption(path) if os.path.isfile(path) else ""
    except CaptionError as error:
        raise UserError(str(error)) from error


def _checks(text: str, place: str) -> frozenset[str]:
    names = re.split(r"[,\s]+", text.strip()) if text.strip() else []
    for name in names:
        if fault := name_fault(name):
            raise UserError(f"{place}: {fault}")
    return frozenset(names)
