"""docs/troubleshooting.md quotes what the program really prints."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.conftest import ROOT
from tests.test_architecture import source, tracked

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
OF_OTHERS = {
    "No matching distribution found for torch": "pip",
    "Killed": "the shell",
    "Unrecognized key ... in Accelerator allocator config": "PyTorch",
    "lora key not loaded": "ComfyUI",
    "Qwen2VLVideoProcessor requires the Torchvision library": "transformers",
}
"""Quotes that are not the program's -> whose they are."""

OPTIONS = {"--allow-change", "device cpu"}


def quotes() -> list[str]:
    """What stands between backticks in the first column of a table."""
    rows = re.findall(r"^\| (?!symptom|---)(.*?) \|", PAGE, re.MULTILINE)
    return [quote for row in rows for quote in re.findall(r"`([^`]+)`", row)]


@cache
def messages() -> list[str]:
    """Every text of the program's source; what an f-string fills in is `...`."""
    found = []
    for name in tracked("toolkit", "extensions", "jobs", "run.py"):
        for node in ast.walk(ast.parse(source(name))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def is_printed(quote: str) -> bool:
    """Whether one message holds all parts of a quote, in their order."""
    pattern = re.compile(".*".join(map(re.escape, re.split(r"\s*\.\.\.\s*", quote))), re.DOTALL)
    return any(pattern.search(message) for message in messages())


@pytest.mark.parametrize("quote", sorted(set(quotes()) - set(OF_OTHERS) - OPTIONS))
def test_a_quoted_message_is_in_the_program(quote: str) -> None:
    assert is_printed(quote)


def test_there_are_quotes_and_a_wrong_one_is_seen() -> None:
    assert len(set(quotes())) > 30
    assert set(quotes()) >= {*OF_OTHERS, *OPTIONS}
    assert not is_printed("holds ... no pictures whatsoever")
