"""The table of what left the program, removed.toml; its head says how a row is written.

`normalise.py` and `validate.py` ask for a key and a value that they do not know,
`loader.py` for a process type, `tool.py` for a flag, `run.py` for a command, and
`toolkit/train/config_diff.py` for what an earlier version recorded.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _table() -> dict[str, Any]:
    path = Path(__file__).parents[1] / "removed.toml"
    table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    return table


@cache
def removed(kind: str) -> dict[str, str]:
    """Name -> the end of a message that begins with it. kind: "keys" or "commands".

    >>> removed("commands")["scale"].partition(". ")[0]
    'was removed in 0.3.0'
    """
    return {
        name: f"was removed in {version}. {remedy}"
        for version, kinds in _table().items()
        for names, remedy in kinds.get(kind, {}).items()
        for name in names.split(", ")
    }


def removed_key(*places: str) -> str:
    """The end of a message about a key or value that is known at none of these places;
    empty where it never was."""
    rows = removed("keys")
    return next((rows[place] for place in places if place in rows), "")


def row_above(place: str) -> str:
    """The removed key at a place or above it; empty where there is none.

    >>> row_above("train.preference.beta"), row_above("datasets[0].from_base.seed")
    ('train.preference', 'datasets[].from_base')
    """
    return next((key for key in _above(place) if key in removed("keys")), "")


def _above(place: str) -> Iterator[str]:
    """A place and the sections around it, the innermost first, as docs/config.md writes
    them."""
    parts = re.sub(r"\[\d+\]", "[]", place).split(".")
    for end in range(len(parts), 0, -1):
        above = ".".join(parts[:end])
        yield above
        yield above.removesuffix("[]")


def computes_the_same(key: str, recorded: Any) -> bool:
    """Whether a run that recorded this value of a removed key goes on without it.

    >>> computes_the_same("train.memory_account", False)
    True
    """
    return not recorded or recorded in _table()["recorded"].get(key, [])
