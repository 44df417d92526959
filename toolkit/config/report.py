"""Collects every mistake and warning of one config file, each with its place."""

from __future__ import annotations

from typing import NoReturn

from toolkit.config.node import Key, Node, Place, dotted
from toolkit.errors import ConfigErrors, Mistake


class Report:
    """What is wrong with one file. Nothing is raised before everything was looked at."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._mistakes: dict[tuple[Place, str, str], Mistake] = {}
        self._warnings: dict[tuple[Place, str], None] = {}
        self._paths: set[str] = set()

    def mistake(self, node: Node, message: str, *, at_key: bool = False, path: Key | None = None) -> None:
        """A mistake at a node's value, or at its key. `path` names a key that the node lacks."""
        place = node.key_at if at_key else node.value_at
        self.mistake_at(place, node.path if path is None else path, message)

    def mistake_at(self, place: Place, path: Key, message: str) -> None:
        """A mistake at a line and column; the same one is kept once."""
        self._paths.add(dotted(path))
        self._mistakes[place, dotted(path), message] = Mistake(self._place(place, path), message)

    def fatal(self, place: Place, path: Key, message: str) -> NoReturn:
        """A mistake behind which nothing can be read."""
        self.mistake_at(place, path, message)
        self.raise_mistakes()
        raise AssertionError("unreachable")

    def warn(self, node: Node, message: str) -> None:
        """A line for the user that does not stop the job."""
        self._warnings[node.key_at, f"{self._place(node.key_at, node.path)}: {message}"] = None

    def reported(self, path: Key) -> bool:
        """Whether this key already has a mistake: one line each is enough."""
        return dotted(path) in self._paths

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line each, in the order of the file."""
        return tuple(line for _, line in sorted(self._warnings))

    def raise_mistakes(self) -> None:
        """Raises ConfigErrors with all mistakes in the order of the file, if there are any."""
        if self._mistakes:
            raise ConfigErrors([self._mistakes[key] for key in sorted(self._mistakes)])

    def _place(self, place: Place, path: Key) -> str:
        where = f"{self.file}:{place.line}:{place.column}" if place.line else self.file
        return f"{where}: {dotted(path)}" if path else where
