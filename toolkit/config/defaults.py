"""`config.defaults`, merged under each process."""

from __future__ import annotations

from dataclasses import replace

from toolkit.config.diagnostics import Diagnostics
from toolkit.config.located import DEFAULTS, ConfigNode


def merge_defaults(process: ConfigNode, defaults: ConfigNode | None) -> ConfigNode:
    """The process with what it does not give taken from `defaults`: mappings merge, all else is replaced."""
    if defaults is None or not isinstance(process.value, dict) or not isinstance(defaults.value, dict):
        return process
    entries = dict(process.value)
    for key, default in defaults.value.items():
        own = entries.get(key)
        if own is None or own.is_blank:
            entries[key] = default
        elif isinstance(own.value, dict):
            entries[key] = merge_defaults(own, default)
    return replace(process, value=entries)


class UnusedDefaults:
    """Finds the keys of `config.defaults` that no process of the job knows.

    A job may hold processes of different types; a default that only one of them knows is left out for the
    others. One that none knows is an error.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._unknown: dict[str, tuple[ConfigNode, str]] = {}

    def known(self, node: ConfigNode) -> None:
        """A process knows the key of this node, its own or a default's: a mapping of its own may hold defaults."""
        below_process = node.path[2:] if node.from_defaults else node.path[3:]
        self._known.add(str((*DEFAULTS, *below_process)))

    def unknown(self, node: ConfigNode, message: str) -> None:
        self._unknown.setdefault(str(node.path), (node, message))

    def report(self, diagnostics: Diagnostics) -> None:
        """Adds an error for each default that nobody knew."""
        for path, (node, message) in self._unknown.items():
            if path not in self._known:
                diagnostics.error(node, message, at_key=True)
