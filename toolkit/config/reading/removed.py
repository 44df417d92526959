"""The table of what left the program, removed.toml; its head says how a row is written.

`normalise.py` and `validate.py` ask for a key and a value that they do not know,
`loader.py` for a process type, `tool.py` for a flag, `run.py` for a command, and
`toolkit/train/config_diff.py` for what an earlier version recorded.
"""

from __future__ import annotations

import re
import tomllib
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


def removed_at(place: str, section: Any = None, key: str = "", value: str = "") -> str:
    """The end of a message about a key that is not known at a place; empty where it
    never was.

    section, key: its section, which may be that of a tool. value: it is not the key
    that is not known, but this value of it.
    """
    behind = f": {value}" if value else ""
    of_tools = (f"{uid}.{key}" for uid in getattr(section, "process_types", ()))
    rows = removed("keys")
    names = (f"{name}{behind}" for name in (place, *of_tools))
    return next((rows[name] for name in names if name in rows), "")


def row_above(place: str) -> str:
    """The removed key at a place or above it, as its row names it; empty where there is
    none. The keys of `optimizers` are those of `train`.

    >>> row_above("train.preference.beta"), row_above("datasets[0].from_base.seed")
    ('train.preference', 'datasets[].from_base')
    """
    named = removed("keys").keys() | _table()["recorded"].keys()
    at = re.sub(r"\[\d+\]", "[]", place)
    for full in (at, re.sub(r"^optimizers\.[^.]+", "train", at)):
        parts = full.split(".")
        for end in range(len(parts), 0, -1):
            above = ".".join(parts[:end])
            for name in (above, above.removesuffix("[]")):
                if name in named:
                    return name
    return ""


def computes_the_same(key: str, recorded: Any) -> bool:
    """Whether a run that recorded this value of a removed key goes on without it.

    >>> computes_the_same("train.memory_account", False)
    True
    """
    same = _table()["recorded"].get(key)
    if same is None:
        return not recorded
    return same == "anything" or recorded is None or recorded in same
