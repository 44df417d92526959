"""Collects every error and warning of one config file, each with its location."""

from __future__ import annotations

from typing import NoReturn

from toolkit.config.located import ConfigNode, KeyPath, SourceLocation, dotted
from toolkit.errors import ConfigErrors, InputError


class Diagnostics:
    """Errors and warnings of one file. Nothing is raised before the whole file was checked."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._errors: dict[tuple[SourceLocation, str, str], InputError] = {}
        self._warnings: dict[tuple[SourceLocation, str], None] = {}
        self._paths: set[str] = set()

    def error(self, node: ConfigNode, message: str, *, at_key: bool = False, path: KeyPath | None = None) -> None:
        """An error at a node's value, or at its key. `path` names a key that the node lacks."""
        env = node.key_at if at_key else node.value_at
        self.error_at(env, node.path if path is None else path, message)

    def error_at(self, env: SourceLocation, path: KeyPath, message: str) -> None:
        """An error at a line and column; the same one is kept once."""
        self._paths.add(dotted(path))
        self._errors[env, dotted(path), message] = InputError(self._place(env, path), message)

    def fatal(self, env: SourceLocation, path: KeyPath, message: str) -> NoReturn:
        """An error behind which nothing can be read."""
        self.error_at(env, path, message)
        self.raise_errors()
        raise AssertionError("unreachable")

    def warn(self, node: ConfigNode, message: str) -> None:
        """A line for the user that does not stop the job."""
        self._warnings[node.key_at, f"{self._place(node.key_at, node.path)}: {message}"] = None

    def reported(self, path: KeyPath) -> bool:
        """Whether this key already has an error: one line each is enough."""
        return dotted(path) in self._paths

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line each, in the order of the file."""
        return tuple(line for _, line in sorted(self._warnings))

    def raise_errors(self) -> None:
        """Raises ConfigErrors with all errors in the order of the file, if there are any."""
        if self._errors:
            raise ConfigErrors([self._errors[key] for key in sorted(self._errors)])

    def _place(self, env: SourceLocation, path: KeyPath) -> str:
        where = f"{self.file}:{env.line}:{env.column}" if env.line else self.file
        return f"{where}: {dotted(path)}" if path else where
