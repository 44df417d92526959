"""What readers of other programs' files share: each key goes to where the table of names has it, a key that is left out
means what it means there, and one line names the defaults that were taken."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from extensions.compat.names import Names
from extensions.compat.nodes import at, file_root, their, tree
from toolkit.config.foreign import NO_DEFAULT, ForeignName
from toolkit.config.located import ConfigNode, Diagnostics, odd_characters, show
from toolkit.config.yaml_reader import map_paths
from toolkit.errors import did_you_mean

Level = dict[str, ConfigNode]
"""Key -> value of one place."""


def layer_patterns(names: Iterable[str]) -> list[str]:
    """Patterns of whole layer names, of peft's `target_modules`: a layer of such a name, or one that ends with it."""
    return [rf"(?:.*\.)?{re.escape(name)}" for name in names]


class TableReader:
    """Reads one file. A subclass has `read`, which fills `process`."""

    program: str
    """As messages name it."""

    rows: Names
    by_hand: Collection[str] = ()
    """Keys that `read` looks at itself."""

    silent: re.Pattern[str]
    """Keys of how their program works, not of what is trained."""

    def __init__(
        self, root: ConfigNode, folder: Path, name: str | None, diagnostics: Diagnostics, moved: Mapping[str, str]
    ) -> None:
        self.root, self.folder, self.name, self.diagnostics, self.moved = root, folder, name, diagnostics, moved
        self.given: Level = self._given(root)
        self.process: dict[str, Any] = {"type": "sd_trainer"}
        self.defaults: dict[str, Any] = {}
        """Key -> their value, of those that were put in."""

    def read(self) -> None:
        raise NotImplementedError

    def job(self) -> ConfigNode:
        """The whole job, with the name and the folder of their `output_dir`."""
        self.read()
        self.note_defaults()
        output = self.output()
        path = Path(self.text(output))
        self.process["training_folder"] = at(output, str(path.parent))
        name = at(output, self.name or path.name)
        return tree({"job": "extension", "config": {"name": name, "process": [self.process]}}, self.root)

    def note_defaults(self) -> None:
        """The line that names the defaults which were taken."""
        if self.defaults:
            taken = ", ".join(f"{key} {json.dumps(value)}".replace('"', "") for key, value in self.defaults.items())
            self.diagnostics.notes.append(f"left out, and therefore as in {self.program}: {taken}")

    def output(self) -> ConfigNode:
        """The folder of the run's files, whose last part is the run's name."""
        raise NotImplementedError

    # ------------------------------------------------------------ keys

    def put_all(self) -> None:
        """Every key that is given, and the defaults of those that are not."""
        for key, node in self.given.items():
            if key not in self.by_hand:
                self.put(key, node)
        for key, row in self.rows.items():
            if key not in self.given and row.default is not NO_DEFAULT and row.how == "is":
                self.set(row.ours[0], self.theirs(key, row.default))

    def put(self, key: str, node: ConfigNode) -> None:
        row = self.rows.get(key)
        if row and row.how == "is":
            self.set(row.ours[0], node)
        elif row and row.how == "idle":
            if node.value not in (False, 0):
                self.diagnostics.warn(node, f"has no effect: {row.says}.")
        elif row and node.value not in (False, *row.passes):
            self.refuse(node, row)
        elif row is None and not self.silent.fullmatch(key):
            known = [*self.rows, *self.by_hand]
            hint = odd_characters(key) or did_you_mean(key, known, list_all=False) or "Leave this key out."
            self.diagnostics.error(node, f"unknown key of {self.program}. {hint}", at_key=True)

    def refuse(self, node: ConfigNode, row: ForeignName) -> None:
        self.diagnostics.error(node, f"{show(node)} is not supported: {row.says}.")

    def set(self, place: str, value: Any) -> None:
        *above, last = place.split(".")
        to = self.process
        for part in above:
            to = to.setdefault(part, {})
        to[last] = value

    def theirs(self, key: str, value: Any) -> ConfigNode:
        """A default of theirs, which is named."""
        self.defaults[key] = value
        return self.default(key, value)

    def default(self, key: str, value: Any) -> ConfigNode:
        """A default of theirs, which is not named as ours is the same."""
        return their(key, value, f"{self.program}'s default")

    def choice(self, node: ConfigNode | None, choices: Mapping[Any, Any]) -> Any:
        """One of their values as ours, or as None; a value that they do not have is told."""
        if node is None:
            return None
        known = isinstance(node.value, str | int | float) and node.value in choices
        if not known:
            hint = did_you_mean(self.text(node), [str(value) for value in choices])
            self.diagnostics.error(node, f"{show(node)} is not supported here. {hint}")
        return choices[node.value] if known else None

    def text(self, node: ConfigNode) -> str:
        """A value that has to be text; where it is none, that is told once."""
        if isinstance(node.value, dict | list):
            if not self.diagnostics.reported(node.path):
                self.diagnostics.error(node, f"{show(node)} is not text.")
            return "missing"
        return node.value if isinstance(node.value, str) else node.text or str(node.value)

    def missing(self, key: str, what: str, item: ConfigNode | None = None) -> ConfigNode:
        """Says that a key is required; any value in its place."""
        place = item or self.root
        self.diagnostics.error(place, f"is required: {what}.", path=(*place.path, key))
        return self.default(key, "missing")

    def level(self, node: ConfigNode | None) -> Level:
        """The keys of a table; none where there is none, and where it is none, which is told."""
        if node is not None and not isinstance(node.value, dict):
            self.diagnostics.error(node, f"{show(node)} is not a table of keys and values.")
        return self._given(node) if node is not None and isinstance(node.value, dict) else {}

    def tables(self, node: ConfigNode | None) -> list[ConfigNode]:
        """The tables of a list of them, faults told."""
        if node is None:
            return []
        items: Iterable[ConfigNode] = node.value if isinstance(node.value, list) else [node]
        return [item for item in items if self.level(item) or isinstance(item.value, dict)]

    def _given(self, node: ConfigNode) -> Level:
        return {key: child for key, child in node.value.items() if not child.is_blank}

    # ------------------------------------------------------------ other files

    def file(self, node: ConfigNode, list_key: str = "") -> ConfigNode | None:
        """The root of a file, as `file_root`, that is sought in the working directory, then beside the config."""
        path = self.found(self.text(node))
        if path is None:
            self.diagnostics.error(node, f"{show(node)} does not exist (working directory: {Path.cwd()}).")
            return None
        root = file_root(path, self.diagnostics, list_key)
        return map_paths(root, self.moved) if root is not None else None

    def found(self, written: str) -> Path | None:
        """Where a file is: in the working directory, as there, or beside the config."""
        expanded = os.path.expanduser(written)
        return next((place for place in (Path(expanded), self.folder / expanded) if os.path.isfile(place)), None)
