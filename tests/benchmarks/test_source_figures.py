"""Imports, of small sources that are looked at by hand."""

from __future__ import annotations

import ast

import pytest

from benchmarks.source_figures import imported

FILES = {"run.py", "room/__init__.py", "room/a.py", "room/b.py"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import room.a", {"room/a.py"}),
        ("from room import a, name", {"room/a.py", "room/__init__.py"}),
        ("from room.a import name", {"room/a.py"}),
        ("from . import a", {"room/a.py"}),
        ("from .a import name", {"room/a.py"}),
        ("def f():\n    from room.a import name", {"room/a.py"}),
        ("import torch, run", {"run.py"}),
        ("from room.b import itself", set()),
    ],
)
def test_an_import_is_found_in_every_spelling(line: str, expected: set[str]) -> None:
    assert imported("room/b.py", ast.parse(line), FILES) == expected
