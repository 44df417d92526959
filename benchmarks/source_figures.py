"""Figures of source code: lines by kind, lengths of functions, files that import each
other in a circle, `Any`.

Reads files as text and imports none of them.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


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


def figures(texts: Mapping[str, str]) -> dict[str, Any]:
    """All figures of these files."""
    trees = {name: ast.parse(text) for name, text in texts.items()}
    lines = [line_kinds(text) for text in texts.values()]
    lengths = {
        f"{name}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, FunctionNode)
    }
    annotated = [
        annotation
        for tree in trees.values()
        for annotation in parameter_annotations(tree)
    ]
    longest = max(lengths, key=lambda place: lengths[place], default="")
    return {
        "files": len(texts),
        "lines": sum(sum(kinds.values()) for kinds in lines),
        **{
            kind: sum(kinds[kind] for kinds in lines)
            for kind in ("code", "doc", "blank")
        },
        "functions": len(lengths),
        "function_median": median(lengths.values()) if lengths else 0,
        "function_mean": fmean(lengths.values()) if lengths else 0.0,
        "function_longest": [longest, lengths.get(longest, 0)],
        "circles": circles(
            {name: imported(name, tree, texts) for name, tree in trees.items()}
        ),
        "circles_at_run_time": circles(
            {
                name: imported(name, without_typing(tree), texts)
                for name, tree in trees.items()
            }
        ),
        "any_parameters": sum(annotation == "Any" for annotation in annotated),
        "annotated_parameters": len(annotated),
        "statements": sum(
            isinstance(node, ast.stmt)
            for tree in trees.values()
            for node in ast.walk(tree)
        ),
        "idioms": idioms(trees.values()),
    }


# ------------------------------------------------------------ idioms


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def idioms(trees: Iterable[ast.AST]) -> dict[str, float]:
    """How often a few dense idioms are used, for each 1,000 statements."""
    counts = dict.fromkeys(
        ("conditional_expressions", "assignment_expressions", "comprehensions"), 0
    )
    counts["tuple_assignments"] = 0
    statements = 0
    for tree in trees:
        for node in ast.walk(tree):
            statements += isinstance(node, ast.stmt)
            counts["conditional_expressions"] += isinstance(node, ast.IfExp)
            counts["assignment_expressions"] += isinstance(node, ast.NamedExpr)
            counts["comprehensions"] += isinstance(node, COMPREHENSIONS)
            counts["tuple_assignments"] += _assigns_a_tuple(node)
    return {name: 1000 * count / max(1, statements) for name, count in counts.items()}


def _assigns_a_tuple(node: ast.AST) -> bool:
    """`a, b = 1, 2`: several names get their values in one line."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    return any(isinstance(target, ast.Tuple) for target in node.targets)


# ------------------------------------------------------------ lines


def line_kinds(text: str) -> dict[str, int]:
    """Lines of code, of docstrings and comments alone (`doc`), and blank lines outside
    of docstrings."""
    code: set[int] = set()
    doc: set[int] = set()
    docstrings = {node.lineno for node in ast.walk(ast.parse(text)) if is_text(node)}
    skipped = (
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
        tokenize.ENCODING,
    )
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            is_doc = token.type == tokenize.COMMENT or (
                token.type == tokenize.STRING and token.start[0] in docstrings
            )
            (doc if is_doc else code).update(range(token.start[0], token.end[0] + 1))
    blank = {
        number
        for number, line in enumerate(text.splitlines(), start=1)
        if not line.strip()
    }
    return {
        "code": len(code - blank),
        "doc": len(doc - code),
        "blank": len(blank - doc),
    }


def is_text(node: ast.AST) -> bool:
    """A text that stands alone: a docstring, of an attribute too."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def parameter_annotations(tree: ast.Module) -> Iterator[str]:
    """The annotations of all parameters but `*args` and `**kwargs`, as they are
    written."""
    for node in ast.walk(tree):
        if isinstance(node, FunctionNode):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            yield from (ast.unparse(one.annotation) for one in every if one.annotation)


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


def without_typing(tree: ast.Module) -> ast.Module:
    """The tree without what stands under `if TYPE_CHECKING:`."""

    class Remove(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            self.generic_visit(node)
            return node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else node

    return Remove().visit(ast.parse(ast.unparse(tree)))


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of files in which each reaches each other one (strongly connected
    components of more than one).

    Sorted. Algorithm: Tarjan 1972, without recursion.
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    waiting: list[str] = []
    found: list[list[str]] = []
    for start in graph:
        if start in index:
            continue
        path = [(start, iter(graph.get(start, ())))]
        index[start] = low[start] = len(index)
        waiting.append(start)
        while path:
            name, rest = path[-1]
            following = next(rest, None)
            if following is None:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[name])
                if low[name] == index[name]:
                    place = waiting.index(name)
                    group, waiting[place:] = sorted(waiting[place:]), []
                    found += [group] if len(group) > 1 else []
            elif following not in index:
                index[following] = low[following] = len(index)
                waiting.append(following)
                path.append((following, iter(graph.get(following, ()))))
            elif following in waiting:
                low[name] = min(low[name], index[following])
    return sorted(found)
