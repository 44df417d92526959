"""The tracer on small modules that are counted by hand, and the entry points of the
walks. Tracing whole jobs takes minutes: that is the bench itself."""

from __future__ import annotations

import ast
import importlib
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.bench_walks import ROOT, WALKS, Tracer, Walk, row

ONE = """
import two

def enter(value):
    return own([two.double(item) for item in [value, value]])

def own(value):
    return value

def fail():
    two.fail()

def late():
    import three
    return three.answer()
"""
TWO = """
def double(value):
    return 2 * value

def fail():
    raise ValueError
"""
THREE = """
def made():
    return 3

VALUE = made()

def answer():
    return VALUE
"""


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    for name, text in (("one", ONE), ("two", TWO), ("three", THREE)):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("one")
    for name in ("one", "two", "three"):
        sys.modules.pop(name, None)


@pytest.fixture
def tracer(tmp_path: Path) -> Tracer:
    return Tracer(
        tmp_path,
        ["one.py:enter", "one.py:fail", "one.py:late"],
        ("one.py", "two.py", "three.py"),
    )


def test_a_walk_is_the_files_and_functions_between_call_and_return(
    one: ModuleType, tracer: Tracer
) -> None:
    with tracer:
        one.own(0)
        assert one.enter(1) == [2, 2]
        one.own(0)
    (walk,) = tracer.calls["one.py:enter"]
    assert walk.files == {"one.py", "two.py"}
    assert walk.functions == {"one.py:enter", "one.py:own", "two.py:double"}
    assert walk.moves == 2  # to the two calls of double, and to own


def test_each_call_is_a_walk_of_its_own_in_every_thread(
    one: ModuleType, tracer: Tracer
) -> None:
    with tracer:
        one.enter(1)
        thread = threading.Thread(target=one.enter, args=(1,))
        thread.start()
        thread.join()
    assert [walk.moves for walk in tracer.calls["one.py:enter"]] == [2, 2]


def test_an_entry_point_that_is_never_called_is_named() -> None:
    with pytest.raises(SystemExit, match=r"lost\.py:f was never called"):
        row(Walk("w", "plain", ("lost.py:f",)), {})


def qualified_names(tree: ast.AST, prefix: str = "") -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield f"{prefix}{node.name}"
            yield from qualified_names(node, f"{prefix}{node.name}.")


def test_every_entry_point_is_there() -> None:
    """A file is read once, however many entry points it has."""
    asked = defaultdict[str, set[str]](set)
    for entry in chain.from_iterable(walk.entries for walk in WALKS):
        file, function = entry.split(":")
        asked[file].add(function.replace(".<locals>", ""))
    for file, functions in asked.items():
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert functions - {*qualified_names(tree)} == set(), file
