"""`ConfigNode`: a value of the config together with the place where it was written.

Nodes move (defaults are merged, old names become new ones), their places move along:
an error is always reported where the user typed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

KeyPath = tuple[str | int, ...]
"""Path of a value: mapping keys and list indices from the outside in."""

DEFAULTS: KeyPath = ("config", "defaults")


class SourceLocation(NamedTuple):
    """Line and column, counted from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class ConfigNode:
    """A mapping, list or scalar of the config file."""

    value: Any
    """dict[str, Node], list[Node] or a scalar."""

    path: KeyPath
    """Keys from the root of the file, as written."""

    key_at: SourceLocation
    value_at: SourceLocation
    text: str = ""
    """A scalar as it stands in the file, without quotes."""

    plain: bool = False
    """A scalar without quotes."""

    written: str | None = None
    """What stood in the file where a `${VAR}` in it was filled in."""

    span: tuple[int, int] = (0, 0)
    """Start and end of the value in the text of the file."""

    aliased: bool = False
    """Written elsewhere and used here by a YAML alias."""

    def data(self, scalar: Callable[[ConfigNode], Any] | None = None) -> Any:
        """The value as plain Python; `scalar` decides what a scalar node becomes."""
        if isinstance(self.value, dict):
            return {key: child.data(scalar) for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.data(scalar) for child in self.value]
        return scalar(self) if scalar else self.value

    def find(self, key: KeyPath) -> tuple[ConfigNode, KeyPath]:
        """The deepest node on the way along `key`, and the keys below it that the file does not have."""
        node = self
        for depth, part in enumerate(key):
            child = node.child(part)
            if child is None:
                return node, key[depth:]
            node = child
        return node, ()

    def child(self, part: str | int) -> ConfigNode | None:
        """The value under one key or index, or None."""
        if isinstance(self.value, dict):
            return self.value.get(part)
        if isinstance(self.value, list) and isinstance(part, int) and part < len(self.value):
            return self.value[part]
        return None

    def walk(self) -> Iterator[ConfigNode]:
        """This node and all below it."""
        yield self
        children = self.value.values() if isinstance(self.value, dict) else self.value
        if isinstance(self.value, dict | list):
            for child in children:
                yield from child.walk()

    @property
    def is_blank(self) -> bool:
        """null or an empty string: the key counts as not given."""
        return self.value is None or self.value == ""

    @property
    def from_defaults(self) -> bool:
        """Written in `config.defaults`, not in the process itself."""
        return self.path[:2] == DEFAULTS


def dotted(path: KeyPath) -> str:
    """A path as messages show it: `process[0].network.linear`; `config.` is left out before `process`."""
    if path[:2] == ("config", "process") and len(path) > 2:
        path = path[1:]
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def general(path: KeyPath) -> str:
    """A path inside a process as the reference page writes it: `datasets[].num_repeats`."""
    inside = path[2:] if path[:2] == DEFAULTS else path[3:]
    return "".join("[]" if isinstance(part, int) else f".{part}" for part in inside).removeprefix(".")


def show(node: ConfigNode) -> str:
    """A value as messages show it, shortened when it is long."""
    value = node.value
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return repr(value if len(value) <= 100 else value[:97] + "...")
    return node.text or ("null" if value is None else str(value))
