"""What the readers of other trainers' files have in common: values go to places of a
job, paths are looked for, defaults of the trainer are named.

`musubi` derives its reader from `TrainerFile`.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extensions.compat.nodes import at, their, tree
from toolkit.config.reading.findings import is_absolute
from toolkit.config.reading.located import (
    ConfigNode,
    Diagnostics,
    show,
)
from toolkit.files.run_files import saved_as

PAGE = "docs/coming_from.md"

Level = dict[str, ConfigNode]
"""Key -> value of one place."""


class TrainerFile:
    """Reads one file; `process` is the process that it becomes."""

    whose = ""
    """The trainer, in messages."""

    def __init__(
        self,
        root: ConfigNode,
        folder: Path,
        name: str | None,
        diagnostics: Diagnostics,
        moved: Mapping[str, str],
    ) -> None:
        self.root = root
        self.folder = folder
        self.name = name
        self.diagnostics = diagnostics
        self.moved = moved
        self.process: dict[str, Any] = {"type": "sd_trainer"}
        self.config: dict[str, Any] = {}
        self.meta: dict[str, Any] = {}
        self.defaults: dict[str, Any] = {}
        """Option -> their value, of those that are left out and are another here."""

        self.lost: list[ConfigNode] = []
        """Paths that lead nowhere."""

    def as_root(self, name: ConfigNode) -> ConfigNode:
        """The whole job, once `process` is complete."""
        self._report_missing()
        self._note_defaults()
        config = {
            **self.config,
            "name": at(name, self.name or name.value),
            "process": [self.process],
        }
        return tree(
            {"job": "extension", "config": config, "meta": self.meta or None}, self.root
        )

    def put_at(self, place: str, value: Any, to: dict[str, Any]) -> None:
        """Sets a value at a key of a job; `to` is a process, or a dataset of it."""
        section, _, rest = place.partition(".")
        if section in ("config", "meta"):
            to = self.config if section == "config" else self.meta
            place = rest
        *above, last = place.removeprefix("datasets[].").split(".")
        for part in above:
            to = to.setdefault(part, {})
        to[last] = value

    def one_for_all(self, place: str, node: ConfigNode, what: str) -> None:
        """Sets what each dataset may say there and all share here."""
        *above, last = place.split(".")
        section = self.process
        for part in above:
            section = section.setdefault(part, {})
        first = section.setdefault(last, node)
        if first.value != node.value:
            message = f"{show(node)}, and {show(first)} in another dataset: {what} is one for all here."
            self.diagnostics.error(node, message)

    # ------------------------------------------------------------ paths

    def look_for(self, path: ConfigNode, beside: bool = False) -> bool:
        """Whether a path leads somewhere; notes those that do not. beside: it may lie
        beside the file."""
        written = os.path.expanduser(str(path.value))
        is_there = beside and os.path.exists(self.folder / written)
        if is_there or os.path.exists(written) or saved_as(written):
            return True
        self.lost.append(path)
        return False

    def found(self, written: str) -> Path | None:
        """Where a file is: in the working directory, as for the trainer, or beside the
        config."""
        expanded = os.path.expanduser(written)
        for place in (Path(expanded), self.folder / expanded):
            if os.path.isfile(place):
                return place
        return None

    def _report_missing(self) -> None:
        self.lost = [
            node for node in self.lost if not self.diagnostics.reported(node.path)
        ]
        absolute = [
            str(node.value).replace("\\", "/")
            for node in self.lost
            if is_absolute(str(node.value))
        ]
        try:
            old = os.path.commonpath([os.path.dirname(path) for path in absolute])
        except ValueError:  # none, or some begin with a drive
            old = ""
        if old in ("", "/"):
            old = "OLD"
        for node in self.lost:
            if is_absolute(str(node.value)):
                message = f"is not on this machine. Where it lies elsewhere: --map {shlex.quote(f'{old}=NEW')}"
            else:
                message = f"does not exist (working directory: {Path.cwd()})."
            self.diagnostics.error(node, f"{show(node)} {message}")

    # ------------------------------------------------------------ defaults

    def their(self, key: str, value: Any) -> ConfigNode:
        """A default of the trainer, which is in no file."""
        return their(key, value, whose=f"{self.whose}'s default")

    def _note_defaults(self) -> None:
        """The line that names the defaults which were taken."""
        if self.defaults:
            taken = [
                f"{key} {json.dumps(value)}".replace('"', "")
                for key, value in self.defaults.items()
            ]
            self.diagnostics.notes.append(
                f"left out, and therefore as in {self.whose}: {', '.join(taken)}"
            )
