"""What source code has: its files, texts that stand alone, imports.

Reads files as text and imports none of them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from pathlib import Path

LIBRARY = ("toolkit", "extensions", "jobs", "launch.py", "run.py")
"""What counts as ours, from the root of a checkout."""


def sources(root: Path, places: Iterable[str]) -> dict[str, str]:
    """POSIX path from `root` -> text, of all Python files under these files and folders
    that are there."""
    files = [
        file
        for place in places
        for file in ((root / place).rglob("*.py"), [root / place])[
            place.endswith(".py")
        ]
    ]
    return {
        file.relative_to(root).as_posix(): file.read_text(encoding="utf-8")
        for file in sorted(files)
    }


def is_text(node: ast.AST) -> bool:
    """A text that stands alone: a docstring, of an attribute too."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


# ------------------------------------------------------------ imports


def imported(name: str, tree: ast.Module, files: Iterable[str]) -> set[str]:
    """Those of `files` that a file imports, wherever in it."""
    known = set(files)
    package = name.split("/")[:-1]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                _file_of(alias.name.split("."), known) for alias in node.names
            } - {None}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *filter(None, (node.module or "").split("."))]
            found |= {
                _file_of([*module, alias.name], known) or _file_of(module, known)
                for alias in node.names
            } - {None}
    return found - {name}


def _file_of(module: Sequence[str], known: set[str]) -> str | None:
    path = "/".join(module)
    return next(
        (file for file in (f"{path}.py", f"{path}/__init__.py") if file in known), None
    )
