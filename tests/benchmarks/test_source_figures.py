"""Imports and their circles, of small sources that are looked at by hand."""

from __future__ import annotations

import ast

import pytest

from benchmarks.source_figures import circles, imported


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": ["b"], "b": ["c"], "c": []}, []),
        ({"a": ["b"], "b": ["a"]}, [["a", "b"]]),
        ({"a": ["b", "c"], "b": ["c"], "c": ["b"]}, [["b", "c"]]),
        (
            {
                "d": ["c"],
                "c": ["b"],
                "b": ["d", "x"],
                "x": ["y"],
                "y": ["x"],
                "z": ["d"],
            },
            [["b", "c", "d"], ["x", "y"]],
        ),
        ({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}, []),
        ({"a": ["b"], "b": ["a", "c"], "c": ["b"]}, [["a", "b", "c"]]),
    ],
)
def test_a_circle_is_a_group_in_which_each_reaches_each(
    graph: dict[str, list[str]], expected: list
) -> None:
    assert circles(graph) == expected


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
