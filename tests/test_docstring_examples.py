"""Examples in docstrings (`>>>`) print what they say."""

from __future__ import annotations

import ast
import doctest
import importlib
import sys
from pathlib import Path

import pytest

from benchmarks.source_figures import LIBRARY, sources
from tests.conftest import ROOT

WITH_EXAMPLES = [
    name for name, text in sources(ROOT, LIBRARY).items() if ">>> " in text
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def module_name(path: str) -> str:
    return ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", WITH_EXAMPLES)
def test_the_examples_of_a_module_are_right(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each docstring, also one that documents an attribute, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(module_name(path))
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    parser = doctest.DocTestParser()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))) if ">>> " in text:
                names = {**vars(module), "__name__": module.__name__}
                example = parser.get_doctest(text, names, path, path, node.lineno)
                runner.run(example, out=sys.stdout.write)
    assert runner.tries > 0
    assert runner.failures == 0
