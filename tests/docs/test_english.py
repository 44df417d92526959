"""Turns of phrase that a native speaker would not write stay out of messages, docstrings and pages.

A list, not taste: each of these was common once.
"""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTEAD = {
    r"(?<![Tt]here) (is|are) no (?!longer|such|need|more|one\b|other)": "is not a, are not",
    r"\b[Kk]nows no\b": "does not support, has no",
    r"\bgoes (with|without)\b": "requires, cannot be combined with",
    r"\bas there\b(?! (is|are)\b)(?=[.,;:)]|$)": "as in, with the name of the program",
    r"(?<!`)\banew\b": "again, from the beginning, re-",
    r"\b[Mm]end(s|ed)? (it|them|that|the)\b": "fix",
    r"\b(is|are) there twice\b": "appear twice, duplicate",
    r"\b(asks?|asking) for nothing\b": "has no effect",
    r"\bcounts? nowhere\b": "is ignored",
    r"\bwithout a word\b": "silently",
    r"\AOf ": "the thing first",
}
"""Pattern -> what to write."""


def found(text: str) -> list[str]:
    return [hit.group() for pattern in INSTEAD for hit in re.finditer(pattern, text, re.MULTILINE)]


def files(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.splitlines() if not name.startswith(("tests/", "benchmarks/"))]


@pytest.mark.parametrize(
    "text",
    ["x is no LoRA", "keys are no names", "a goes with b", "as there.", "begins anew", "Mend it.", "Of the images"],
)
def test_each_phrase_is_found(text: str) -> None:
    assert found(text)


@pytest.mark.parametrize(
    "text", ["There is no mask.", "is no longer here", "as there is none", "the end", "a box of it"]
)
def test_what_is_english_is_not(text: str) -> None:
    assert not found(text)


def test_messages_and_docstrings_are_free_of_them() -> None:
    wrong = []
    for path in files("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                wrong += [f"{path.relative_to(ROOT)}:{node.lineno}: {hit!r}" for hit in found(node.value)]
    assert wrong == []


def test_pages_are_free_of_them() -> None:
    pages = [*files("*.md"), *files("*.yaml"), *files("*.html")]
    assert [f"{page.relative_to(ROOT)}: {hit!r}" for page in pages for hit in found(page.read_text())] == []
