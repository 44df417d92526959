"""What the readers of other trainers' files have in common: values go to places of a
job, paths are looked for, defaults of the trainer are named.

`ByTable` reads a trainer whose keys are in `trainers.toml`. A new format is a module
with a class of it and `FILES`, its tables there, and one line in `FOREIGN_FILES` of
`toolkit/registry.py`. `musubi` has its keys in the table of names instead.
"""

from __future__ import annotations

import json
import os
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from extensions.compat.keys import tell_idle
from extensions.compat.names import row_of
from extensions.compat.nodes import at, file_root, node_at, their, tree
from toolkit.config.reading.findings import is_absolute
from toolkit.config.reading.foreign import NO_DEFAULT, ForeignName
from toolkit.config.reading.located import (
    ConfigNode,
    Diagnostics,
    odd_characters,
    show,
)
from toolkit.config.reading.yaml_reader import scalar_kind, scalar_value
from toolkit.errors import did_you_mean
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


# ---------------------------------------------------------------- by a table of keys


class Row(NamedTuple):
    """What a key of a trainer is here.

    >>> trainer_rows("diffusion-pipe", "config")["epochs"].name.field
    'epochs'
    """

    name: ForeignName
    values: Mapping[str, Any]
    """Their value as text -> ours, of those that are others here."""


@cache
def trainer_tables() -> dict[str, dict[str, dict[str, Row]]]:
    """Program -> table -> key -> row."""
    text = Path(__file__).with_name("trainers.toml").read_text(encoding="utf-8")
    return {
        program: {
            table: {
                key: Row(row_of(columns), columns.get("values", {}))
                for keys, columns in rows.items()
                for key in keys.split()
            }
            for table, rows in tables.items()
        }
        for program, tables in tomllib.loads(text).items()
    }


def trainer_rows(program: str, table: str) -> dict[str, Row]:
    """The rows of one table of a program, by key."""
    return trainer_tables()[program][table]


PATHS = frozenset(
    {
        "model.transformer_path", "model.vae_path", "model.text_encoder_path", "network.pretrained_lora_path",
        "datasets[].folder_path", "datasets[].control_path", "datasets[].mask_path", "datasets[].captions_file",
    }
)  # fmt: skip
"""Our keys whose values have to be there."""

OFF = (None, "", False, 0, "none", "None", "NONE")
"""Values of what is off."""

WHOLE = (
    "",
    "none",
    "nochange",
    "bfloat16",
    "float16",
    "float32",
    "bf16",
    "fp16",
    "fp32",
)
"""Number types, without `_` and in small letters, of what is not quantized."""


class ByTable(TrainerFile):
    """Reads a file whose keys are in `trainers.toml`; a derived class does by hand what
    the rows `converted_to` say."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.given = level_of(self.root)
        self.idle: list[tuple[ConfigNode, str]] = []

    def job(self) -> ConfigNode:
        """The whole job."""
        self.read("config", self.given, self.process)
        name = self.by_hand()
        if not self.process.get("datasets"):
            self.process["datasets"] = [{"folder_path": node_at(self.root, ".")}]
        tell_idle(self.idle, self.diagnostics, PAGE, lambda path: str(path[-1]))
        return self.as_root(name)

    def by_hand(self) -> ConfigNode:
        """Sets what no row can, and returns the name of the job."""
        raise NotImplementedError

    def trains_adapter(self) -> bool:
        """Whether their defaults of an adapter count."""
        raise NotImplementedError

    def read(self, table: str, given: Level, to: dict[str, Any]) -> None:
        """Puts the values of one place where their rows say."""
        rows = trainer_rows(self.whose, table)
        for key, node in given.items():
            name = key
            if key not in rows:
                begins = [
                    row for row in rows if row[-1] == "*" and key.startswith(row[:-1])
                ]
                name = next(iter(begins), key)
            row = rows.get(name)
            if row is None:
                hint = odd_characters(key) or did_you_mean(key, rows, list_all=False)
                message = f"is an unknown key, and is left out. {hint}".rstrip()
                self.diagnostics.warn(node, message)
            elif not node.is_blank:
                self._put(name, node, row, to)
        adapter = self.trains_adapter()
        for key, (named, _) in rows.items():
            if named.default is NO_DEFAULT or _has(given, key):
                continue
            if adapter or not named.ours[0].startswith("network."):
                self.defaults[key] = named.default
                self.put_at(named.ours[0], self.their(key, named.default), to)

    def _put(self, key: str, node: ConfigNode, row: Row, to: dict[str, Any]) -> None:
        name, values = row
        if name.how == "renamed_to":
            text = str(node.value)
            node = at(node, values[text]) if text in values else node
            listed = node.value if isinstance(node.value, list) else [node]
            if name.ours[0] in PATHS:
                for path in listed:
                    self.look_for(path)
            self.put_at(name.ours[0], node, to)
        elif name.how == "not_needed":
            self.idle.append((replace(node, path=(key,)), f": {name.says}"))
        elif name.how in ("only_accepts", "no_counterpart"):
            if node.value not in (*OFF, *name.passes):
                says = f": {name.says}" if name.says else ""
                self.refuse(node, f"is not supported here{says}.")

    def refuse(self, node: ConfigNode, why: str) -> None:
        """An error for a value that changes what is learned and is not here."""
        self.diagnostics.error(node, f"{show(node)} {why}")

    def value(self, key: str, default: Any = None, given: Level | None = None) -> Any:
        """The plain value of a key, of the config unless `given`: a number or a text
        where `default` is one, else what is there. Another kind is reported."""
        node = (self.given if given is None else given).get(key)
        if node is None or node.is_blank:
            return default
        value = node.data()
        if isinstance(value, str) and scalar_kind(value) in ("int", "float", "bool"):
            value = scalar_value(value)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(default, str) and not isinstance(node.value, list):
            return str(node.value)
        if default is None or (is_number and not isinstance(default, str)):
            return value
        kind = "text" if isinstance(default, str) else "a number"
        self.diagnostics.error(node, f"{show(node)} is not {kind}.")
        return default

    def put(self, place: str, key: str, value: Any) -> None:
        """Sets a value that was made of a key's; where the key is left out, as their
        default."""
        node = self.given.get(key)
        node = tree(value, node) if node is not None else self.their(key, value)
        self.put_at(place, node, self.process)

    def quantized(self, key: str, qtypes: Mapping[str, str], suffix: str = "") -> None:
        """A number type of theirs as `quantize` and `qtype`; suffix: `_te`. One that is
        neither in `qtypes` nor in half or full precision is refused."""
        kind = self.value(key, "")
        if kind in qtypes:
            self.put(f"model.quantize{suffix}", key, True)
            self.put(f"model.qtype{suffix}", key, qtypes[kind])
        elif kind.lower().replace("_", "") not in WHOLE:
            remedy = f"Write {' or '.join(map(repr, qtypes))}."
            self.refuse(self.given[key], f"is none of the types here. {remedy}")

    def betas(self, first: str, second: str) -> None:
        """Two keys as the optimizer's `betas`."""
        if _has(self.given, first) or _has(self.given, second):
            key = first if first in self.given else second
            pair = [self.value(first, 0.9), self.value(second, 0.999)]
            self.put("train.optimizer_params.betas", key, pair)

    def shifted(self, key: str, shift: Any, unshifted: str) -> None:
        """Noise levels by a fixed shift; with none `unshifted`."""
        is_shifted = shift not in (None, 0, 1)
        self.put("train.timestep_type", key, "shift" if is_shifted else unshifted)
        if is_shifted:
            self.put("train.discrete_flow_shift", key, shift)

    def file_of(self, node: ConfigNode, key: str) -> Level:
        """The entries of a JSON or TOML file that the config names; a list stands under
        `key`. Empty where it is missing, which is reported."""
        path = self.found(str(node.value))
        if path is None:
            self.look_for(node)
            return {}
        root = file_root(path, self.diagnostics, key)
        return root.value if root is not None else {}

    def listed(self, key: str, file_key: str) -> list[ConfigNode]:
        """The mappings of a list in the config, or in the file that it names."""
        node = self.given.get(key)
        if node is None and _has(self.given, file_key):
            node = self.file_of(self.given[file_key], key).get(key)
        items = node.value if node is not None and isinstance(node.value, list) else []
        return [item for item in items if isinstance(item.value, dict)]

    def name_and_folder(self, key: str, path: str) -> ConfigNode:
        """The name of the job and the folder above, from the path of their results."""
        node = self.given.get(key)
        place = self.root if node is None else node
        folder = Path(os.path.normpath(path.replace("\\", "/")))
        self.put_at("training_folder", at(place, str(folder.parent)), self.process)
        return at(place, folder.name or "lora")

    def prompts(self, prompts: Sequence[Any]) -> None:
        """The samples; none are drawn without one."""
        if prompts:
            self.put_at("sample.samples", list(prompts), self.process)
        else:
            self.process.pop("sample", None)
            off = node_at(self.root, True)
            self.put_at("train.disable_sampling", off, self.process)

    def need(self, key: str, what: str) -> None:
        """Reports a key that has to be there."""
        if not self.lost:
            self.diagnostics.error(self.root, f"is required: {what}.", path=(key,))


def _has(given: Level, key: str) -> bool:
    return key in given and not given[key].is_blank


def level_of(root: ConfigNode, above: str = "") -> Level:
    """The values of a mapping by dotted keys, without dashes before them; lists stay as
    they are."""
    return dict(_leaves(root, above))


def _leaves(node: ConfigNode, above: str) -> Iterator[tuple[str, ConfigNode]]:
    for key, child in node.value.items():
        name = f"{above}{key.lstrip('-')}"
        if isinstance(child.value, dict):
            yield from _leaves(child, f"{name}.")
        else:
            yield name, child
