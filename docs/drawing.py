"""The drawing of the packages in docs/architecture.md, made from the imports: `python
docs/generate.py` writes it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("jobs", "toolkit", "extensions")

GROUND = ("toolkit/system", "toolkit/files", "toolkit")
"""Rooms that all others stand on: one node."""


def room_of(path: str) -> str:
    """The room of a source file (POSIX path from the root); of extensions the
    folder."""
    parts = path.removesuffix(".py").split("/")
    room = (
        parts[0]
        if parts[0] in ("run", "jobs")
        else "/".join(parts[:2] if len(parts) > 2 else parts[:1])
    )
    return "ground" if room in GROUND else room.removeprefix("toolkit/")


def imported(tree: ast.Module) -> Iterator[str]:
    """The modules of ours that a file imports when it is used, without those for the
    type checker."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def arrows(root: Path = ROOT) -> dict[str, set[str]]:
    """Room -> the rooms it imports."""
    files = [
        root / "run.py",
        *(file for package in PACKAGES for file in (root / package).rglob("*.py")),
    ]
    paths = {file.relative_to(root).as_posix(): file for file in files}
    of_module = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
        for path in paths
    }
    found: dict[str, set[str]] = {}
    for path, file in sorted(paths.items()):
        own = found.setdefault(room_of(path), set())
        for name in imported(ast.parse(file.read_text(encoding="utf-8"))):
            target = of_module.get(name) or of_module.get(name.rpartition(".")[0])
            if target and room_of(target) != room_of(path):
                own.add(room_of(target))
    return found


def reduced(graph: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Without the arrows that others imply (a -> c beside a -> b -> c)."""

    def reached(room: str, seen: frozenset[str] = frozenset()) -> set[str]:
        return {room}.union(
            *(reached(to, seen | {room}) for to in graph.get(room, set()) - seen)
        )

    return {
        room: sorted(
            to
            for to in targets
            if not any(
                to in reached(other, frozenset({room})) for other in targets - {to}
            )
        )
        for room, targets in graph.items()
    }


def drawing() -> str:
    """A Mermaid flowchart of the rooms; an arrow says "imports"."""
    graph = {
        room: targets
        for room, targets in reduced(arrows()).items()
        if room != "extensions"
    }
    core = [
        room
        for room in graph
        if not room.startswith("extensions/") or room == "extensions/sd_trainer"
    ]
    lines = ["```mermaid", "flowchart TD", "  subgraph core"]
    lines += [f'    {_key(room)}["{room}"]' for room in sorted(core)]
    lines += [
        "  end",
        *(f'  {_key(room)}["{room}"]' for room in sorted(graph) if room not in core),
    ]
    lines += [
        f"  {_key(room)} --> {_key(to)}" for room in sorted(graph) for to in graph[room]
    ]
    return "\n".join([*lines, "```"])


def _key(room: str) -> str:
    return room.replace("/", "_")
