"""`ConfigNode`: a value of the config together with the place where it was written;
`Diagnostics`: the errors and warnings of one config file, each at such a place.

Nodes move (defaults are merged, old names become new ones), their places move along:
an error is always reported where the user typed it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from toolkit.errors import ConfigErrors, Diagnostic, with_short_words
from toolkit.errors import KeyPath as KeyPath

DEFAULTS: KeyPath = ("config", "defaults")


class SourceLocation(NamedTuple):
    """Line and column, counted from 1.

    >>> SourceLocation(12, 5)
    SourceLocation(line=12, column=5, file='')
    """

    line: int
    column: int
    file: str = ""
    """Name of another file that the config names; empty: the config itself."""


NOWHERE = SourceLocation(0, 0)
"""The location of a node that does not come from a file."""


@dataclass(frozen=True)
class ConfigNode:
    """A mapping, list or scalar of the config file.

    >>> from toolkit.config.reading.yaml_reader import read_yaml
    >>> root = read_yaml("train: {steps: 20}", Diagnostics("job.yaml"))
    >>> node, missing = root.find(("train", "steps"))
    >>> node.value, node.value_at.column, dotted(node.path)
    (20, 16, 'train.steps')
    """

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
        """The value as plain dicts, lists and scalars. scalar: from a scalar node to
        its plain value; None: the value itself."""
        if isinstance(self.value, dict):
            return {key: child.data(scalar) for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.data(scalar) for child in self.value]
        return scalar(self) if scalar else self.value

    def find(self, key: KeyPath) -> tuple[ConfigNode, KeyPath]:
        """The deepest node on the way along `key`, and the keys below it that the file
        does not have."""
        node = self
        for depth, part in enumerate(key):
            child = node.child(part)
            if child is None:
                return node, key[depth:]
            node = child
        return node, ()

    def child(self, part: str | int) -> ConfigNode | None:
        """The node under one key of a mapping or one index of a list. None where it is
        missing, or where the value is neither."""
        if isinstance(self.value, dict):
            return self.value.get(part)
        if (
            isinstance(self.value, list)
            and isinstance(part, int)
            and part < len(self.value)
        ):
            item: ConfigNode = self.value[part]
            return item
        return None

    def walk(self) -> Iterator[ConfigNode]:
        """This node, then all nodes below it, each before its children, in the order of
        the file."""
        yield self
        children = self.value.values() if isinstance(self.value, dict) else self.value
        if isinstance(self.value, dict | list):
            for child in children:
                yield from child.walk()

    @property
    def flag(self) -> tuple[str, str]:
        """The flag of the command line that gives this value, and the key behind it:
        `--set` and `train.lr`. Two empty texts for a value of a file."""
        flag, _, key = self.value_at.file.partition(" ")
        return (flag, key) if flag in ("--set", "--sweep") else ("", "")

    @property
    def is_blank(self) -> bool:
        """Whether the value is null or an empty string. The key then counts as not
        given."""
        return self.value is None or self.value == ""

    @property
    def from_defaults(self) -> bool:
        """Whether the value is written in `config.defaults`, not in the process
        itself."""
        return self.path[:2] == DEFAULTS


def dotted(path: KeyPath) -> str:
    """A path as messages show it: `process[0].network.linear`; `config.` is left out
    before `process`."""
    if path[:2] == ("config", "process") and len(path) > 2:
        path = path[1:]
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def general(path: KeyPath) -> str:
    """A path inside a process as the reference page writes it:
    `datasets[].num_repeats`."""
    inside = path[2:] if path[:2] == DEFAULTS else path[3:]
    parts = ("[]" if isinstance(part, int) else f".{part}" for part in inside)
    return "".join(parts).removeprefix(".")


def show(node: ConfigNode) -> str:
    """A value as messages show it: strings in quotes and at most 100 characters of
    them, other scalars as the file writes them, "a mapping" or "a list" for the
    rest."""
    value = node.value
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return repr(value if len(value) <= 100 else value[:97] + "...")
    return node.text or ("null" if value is None else str(value))


def odd_characters(text: str) -> str:
    """A sentence that names the characters of a text that look like plain quotes or
    spaces but are others, with the remedy; empty where it has none.

    >>> odd_characters("maya")
    ''
    """
    odd = [
        c
        for c in dict.fromkeys(text)
        if c in _ODD_QUOTES or (unicodedata.category(c) in ("Zs", "Cf") and c != " ")
    ]
    names = ", ".join(
        f"U+{ord(c):04X} ({unicodedata.name(c, 'no name').lower()})" for c in odd
    )
    return f"It holds {names}: type a plain quote or space." if odd else ""


_ODD_QUOTES = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00b4"


class Diagnostics:
    """Errors and warnings of one file. Nothing is raised before the whole file was
    checked.

    >>> diagnostics = Diagnostics("job.yaml")
    >>> diagnostics.error_at(SourceLocation(3, 5), ("train", "lr"), "'x' is not a number.")
    >>> diagnostics.reported(("train", "lr"))
    True
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self._errors: dict[tuple[SourceLocation, str, str], Diagnostic] = {}
        self._warnings: dict[tuple[SourceLocation, str], None] = {}
        self._paths: set[str] = set()
        self.notes: list[str] = []
        """Lines of the plan about the file, besides its warnings."""

    def error(
        self,
        node: ConfigNode,
        message: str,
        *,
        at_key: bool = False,
        path: KeyPath | None = None,
    ) -> None:
        """An error at a node's value, or at its key. `path` names a key that the node
        lacks."""
        env = node.key_at if at_key else node.value_at
        self.error_at(env, node.path if path is None else path, message)

    def error_at(self, env: SourceLocation, path: KeyPath, message: str) -> None:
        """An error at a line and column; the same one is kept once. A message may end
        in a space, where a remedy is empty."""
        message = with_short_words(message.rstrip())
        self._paths.add(dotted(path))
        self._errors[env, dotted(path), message] = Diagnostic(
            (self._place(env, path),), message
        )

    def fatal(self, env: SourceLocation, path: KeyPath, message: str) -> NoReturn:
        """Adds an error after which nothing can be read, and raises ConfigErrors with
        all errors so far."""
        self.error_at(env, path, message)
        self.raise_errors()
        raise AssertionError("unreachable")

    def warn(self, node: ConfigNode, message: str) -> None:
        """Adds a warning at the key of `node`. It does not stop the job, and the same
        one is kept once."""
        self._warnings[
            node.key_at, f"{self._place(node.key_at, node.path)}: {message}"
        ] = None

    def include(self, other: Diagnostics) -> None:
        """Adds the errors and warnings of another file."""
        self._errors |= other._errors
        self._warnings |= other._warnings

    def mark(self, path: KeyPath) -> None:
        """Reports nothing more of this key: its error is reported at another place."""
        self._paths.add(dotted(path))

    def reported(self, path: KeyPath) -> bool:
        """Whether this key already has an error: one line each is enough."""
        return dotted(path) in self._paths

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings, each one line that begins with its place, in the order of the
        file."""
        return tuple(line for _, line in sorted(self._warnings))

    def raise_errors(self) -> None:
        """Raises ConfigErrors with all errors in the order of the file, if there are
        any."""
        if self._errors:
            raise ConfigErrors([self._errors[key] for key in sorted(self._errors)])

    def place(self, node: ConfigNode) -> str:
        """The place of a value (file, line, key) with which a message about it
        begins."""
        return self._place(node.value_at, node.path)

    def _place(self, env: SourceLocation, path: KeyPath) -> str:
        file = env.file or self.file
        where = f"{file}:{env.line}:{env.column}" if env.line else file
        return f"{where}: {with_short_words(dotted(path))}" if path else where
