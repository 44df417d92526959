"""Optimizers and schedules by role as FluxFlow's guide writes them: inline under two
names, or in a JSON file.

It reads optimizers and schedules only; the other keys of a step are in `fluxflow`,
which calls it once for each step and puts the result into the section `optimizers`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from extensions.compat.nodes import entries, of_file, tree
from toolkit.config.reading.located import ConfigNode, Diagnostics, SourceLocation, show
from toolkit.config.reading.normalise import merge_aliases
from toolkit.config.reading.yaml_reader import read_yaml, strip_json_comments
from toolkit.errors import ConfigErrors, did_you_mean
from toolkit.files.writing import read_source

ROLES = {
    "flow": "flow",
    "flow_processor": "flow",
    "vae": "vae",
    "compressor": "vae",
    "expander": "vae",
    "decoder": "vae",
    "text_encoder": "text_encoder",
    "discriminator": "discriminator",
    "D_img": "discriminator",
}
"""Name of a set of weights in the guide -> the role."""

OPTIMIZERS = "optimizers"
SCHEDULERS = "schedulers"
INLINE = {
    OPTIMIZERS: (OPTIMIZERS, "optimizer_config"),
    SCHEDULERS: (SCHEDULERS, "scheduler_config"),
}
"""What is given -> the keys that give it."""

KIND = {OPTIMIZERS: ("optimizer_type", "type"), SCHEDULERS: ("scheduler_type", "type")}

FILE = "optim_sched_config"
COSINE = "cosineannealinglr"
PLATEAU = "reducelronplateau"
OF_DISCRIMINATOR = {"betas": [0.0, 0.9], "amsgrad": True}
"""Arguments of its AdamW, where the job gives none."""

_ENDS = ("eta_min_factor", "eta_min")

Entry = dict[str, ConfigNode]
ByRole = dict[str, Entry]


class RoleOptimizers:
    """The optimizers of one step. An entry of the step goes before one of
    `pipeline.defaults`, and that before one of `training`; in each place what is
    written inline goes before the file.

    Example::

        optimizers = RoleOptimizers(folder, [step, defaults, training], diagnostics)
        entry = optimizers.optimizer("flow")  # empty where nothing is given
    """

    def __init__(
        self,
        folder: Path,
        levels: Sequence[Mapping[str, ConfigNode]],
        diagnostics: Diagnostics,
    ) -> None:
        """folder: where JSON files are looked for first. levels: the places, the step's
        own first."""
        self.folder = folder
        self.diagnostics = diagnostics
        self._sources = {
            what: [source for level in levels for source in self._of_level(level, what)]
            for what in INLINE
        }

    def optimizer(self, role: str) -> Entry:
        """The entry of a role as written, its kind under `type`; empty where there is
        none."""
        return self._merged(OPTIMIZERS, role)

    def entry(
        self,
        role: str,
        lr_min: ConfigNode | None,
        place: ConfigNode,
        has_length: bool = True,
    ) -> dict[str, Any]:
        """The entry of `optimizers` in a process. lr_min: where the rate ends, as a
        share; None: the default. has_length: whether the step's length is known; if
        not, a rate without an entry stays as it is."""
        given = self.optimizer(role)
        kind = given.pop("type", None)
        entry: dict[str, Any] = {"optimizer": kind or "adamw"}
        lr = given.pop("lr", None)
        if lr is not None:
            entry["lr"] = lr
        is_adamw = kind is None or str(kind.value).lower() == "adamw"
        if role == "discriminator" and is_adamw:
            for name, value in OF_DISCRIMINATOR.items():
                given.setdefault(name, tree(value, place))
        if given:
            entry["optimizer_params"] = _gathered(given)
        if not has_length and not self._merged(SCHEDULERS, role):
            return entry | {"lr_scheduler": "constant"}
        return entry | self._schedule(role, lr_min, place)

    def _schedule(
        self, role: str, lr_min: ConfigNode | None, place: ConfigNode
    ) -> dict[str, Any]:
        given = self._merged(SCHEDULERS, role)
        kind = given.pop("type", None)
        name = COSINE if kind is None else str(kind.value).lower()
        params: dict[str, Any] = dict(given)
        if name == COSINE and not any(end in params for end in _ENDS):
            params["eta_min_factor"] = lr_min or (
                0.001 if role == "text_encoder" else 0.1
            )
        mode = params.pop("mode", None) if name == PLATEAU else None
        if mode is not None and mode.value != "min":
            self.diagnostics.error(
                mode, f"{show(mode)}: a loss is to fall. Write min, or leave it out."
            )
        nodes = {key: tree(value, place) for key, value in params.items()}
        # An empty mapping where there are none: without it the role would take those of
        # the process, of a cosine.
        arguments = _gathered(nodes or {"type": kind or tree(COSINE, place)})
        return {
            "lr_scheduler": kind or "CosineAnnealingLR",
            "lr_scheduler_params": arguments if nodes else replace(arguments, value={}),
        }

    def check(
        self, given: Mapping[str, ConfigNode], roles: Sequence[str], step: str
    ) -> None:
        """Warns of entries that the step gives itself for roles which it does not
        train."""
        for what in INLINE:
            for source in self._of_level(given, what):
                for role, entry in source.items():
                    if role not in roles and entry:
                        node = next(iter(entry.values()))
                        at = replace(node, path=node.path[:-1])
                        trained = ", ".join(roles)
                        self.diagnostics.warn(
                            at, f"has no effect: step {step!r} trains {trained}."
                        )

    def _merged(self, what: str, role: str) -> Entry:
        merged: Entry = {}
        for source in self._sources[what]:
            entry = source.get(role, {})
            kinds = [
                arguments["type"].value
                for arguments in (merged, entry)
                if "type" in arguments
            ]
            if len(kinds) == 2 and str(kinds[0]).lower() != str(kinds[1]).lower():
                break  # the arguments of another class
            merged = entry | merged
        return merged

    def _of_level(self, level: Mapping[str, ConfigNode], what: str) -> Iterator[ByRole]:
        """What one place says: inline, then the file."""
        inline: dict[str, ConfigNode] = {}
        nodes = [level[key] for key in INLINE[what] if key in level]
        both = level.get("optimization")
        if both is not None:
            self._refuse_unknown(both)
            nodes += [both.value[key] for key in INLINE[what] if key in both.value]
        for node in nodes:
            if isinstance(node.value, dict):
                for name, entry in node.value.items():
                    inline[name] = merge_aliases(
                        inline.get(name), entry, self.diagnostics
                    )
            else:
                self.diagnostics.error(node, f"{show(node)} is not a mapping of roles.")
        yield self._by_role(inline, what)
        root = self._file(level[FILE]) if FILE in level else None
        if root is not None:
            yield self._by_role(entries(root.value.get(what)), what)

    def _by_role(self, given: Mapping[str, ConfigNode], what: str) -> ByRole:
        by_role: dict[str, ConfigNode] = {}
        for name, node in given.items():
            if name not in ROLES:
                hint = did_you_mean(name, ROLES)
                self.diagnostics.error(
                    node, f"{name!r} is not a set of weights. {hint}", at_key=True
                )
            elif not isinstance(node.value, dict):
                self.diagnostics.error(
                    node, f"{show(node)} is not a mapping of keys and values."
                )
            else:
                role = ROLES[name]
                by_role[role] = merge_aliases(by_role.get(role), node, self.diagnostics)
        return {role: self._entry(node, what) for role, node in by_role.items()}

    def _entry(self, node: ConfigNode, what: str) -> Entry:
        entry = {key: child for key, child in node.value.items() if not child.is_blank}
        kinds = [entry.pop(key) for key in KIND[what] if key in entry]
        for kind in kinds:
            entry["type"] = merge_aliases(entry.get("type"), kind, self.diagnostics)
        return entry

    def _refuse_unknown(self, node: ConfigNode) -> None:
        known = [key for keys in INLINE.values() for key in keys]
        for key, child in node.value.items():
            if key not in known and not (key == FILE and child.is_blank):
                belongs = "It belongs in 'training' or a step."
                hint = belongs if key == FILE else did_you_mean(key, known)
                self.diagnostics.error(child, f"unknown key. {hint}", at_key=True)

    def _file(self, node: ConfigNode) -> ConfigNode | None:
        """The JSON file that a node names; None where it cannot be read, which is
        reported."""
        name = Path(node.value).expanduser()
        places = [self.folder / name, name]
        path = next((place for place in places if os.path.isfile(place)), None)
        if path is None:
            looked = " and ".join(
                dict.fromkeys(str(place.absolute()) for place in places)
            )
            self.diagnostics.error(
                node, f"{show(node)} does not exist (looked for {looked})."
            )
            return None
        return _read_json(path, self.diagnostics)


def _read_json(path: Path, diagnostics: Diagnostics) -> ConfigNode | None:
    """The file with nodes that name it as their place."""
    try:
        text = strip_json_comments(read_source(path).decode("utf-8-sig"))
        json.loads(text)
    except json.JSONDecodeError as error:
        place = SourceLocation(error.lineno, error.colno, str(path))
        diagnostics.error_at(
            place,
            (),
            f"not valid JSON: {error.msg}. 'python -m json.tool {path}' checks it.",
        )
        return None
    except (OSError, ValueError, RecursionError) as error:
        diagnostics.error_at(
            SourceLocation(0, 0, str(path)), (), f"cannot be read: {error}"
        )
        return None
    of_file_alone = Diagnostics(str(path))
    try:
        root = read_yaml(text, of_file_alone)
    except ConfigErrors:
        root = None
    diagnostics.include(of_file_alone)
    if root is None:
        return None
    root = of_file(root, str(path))
    for key, node in root.value.items():
        if key not in INLINE and not key.startswith("_"):
            diagnostics.error(
                node, f"unknown key. {did_you_mean(key, INLINE)}", at_key=True
            )
    return root


def _gathered(nodes: Entry) -> ConfigNode:
    """The arguments of one class as a mapping at the place of the first."""
    first = next(iter(nodes.values()))
    return replace(
        first,
        value=dict(nodes),
        path=first.path[:-1],
        key_at=first.key_at,
        value_at=first.key_at,
    )
