"""Lines, lengths, circles and `Any` of small sources that are counted by hand."""

from __future__ import annotations

import ast

import pytest

from benchmarks.source_figures import (
    circles,
    figures,
    idioms,
    imported,
    line_kinds,
)

TEXT = '''"""Head.

Second paragraph.
"""

from typing import Any

LIMIT = 3  # of all
"""Of an attribute."""


# alone
def read(section: Any, *rest: Any, name: str = "x") -> Any:
    """One line."""

    text = """a

b"""
    return text
'''


def test_lines_are_code_documentation_or_blank() -> None:
    assert line_kinds(TEXT) == {"code": 6, "doc": 7, "blank": 6}


def test_the_figures_of_a_file() -> None:
    found = figures({"a.py": TEXT})
    assert (found["files"], found["lines"], found["functions"]) == (1, 19, 1)
    assert found["function_longest"] == ["a.py:13 read", 7]
    assert (found["any_parameters"], found["annotated_parameters"]) == (1, 2)


DENSE = """
a, b = 1, 2
first, rest = a
if (c := a) and [d for d in {e for e in b}]:
    f = 1 if c else 2
"""


def test_dense_idioms_are_counted_for_each_1000_statements() -> None:
    """Four statements."""
    assert idioms([ast.parse(DENSE)]) == {
        "conditional_expressions": 250,
        "assignment_expressions": 250,
        "comprehensions": 500,
        "tuple_assignments": 250,
    }


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
