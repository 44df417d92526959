"""A section as written -> the section as its model names it.

Old names become new ones, keys without a value go, names nobody knows are reported and left out,
so that the model can then report every other error in the same pass.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel

from toolkit.config.base import StrictModel
from toolkit.config.compat import peer_names
from toolkit.config.compat.foreign import ForeignNames
from toolkit.config.defaults import UnusedDefaults
from toolkit.config.diagnostics import Diagnostics
from toolkit.config.located import ConfigNode, dotted, general, show
from toolkit.errors import did_you_mean


class Normaliser:
    """Walks a section along its model. One instance serves all processes of a job."""

    def __init__(self, diagnostics: Diagnostics, defaults: UnusedDefaults) -> None:
        self.diagnostics = diagnostics
        self.defaults = defaults

    def section(self, model: type[BaseModel], node: ConfigNode, also_known: frozenset[str] = frozenset()) -> ConfigNode:
        """`node` under the names of `model`; `also_known` are keys that are kept though it lacks them."""
        if not isinstance(node.value, dict):
            return node
        fields = field_names(model)
        strict = model if issubclass(model, StrictModel) else StrictModel
        known = {*fields, *also_known, *strict.foreign.names()}
        open_ended = model.model_config.get("extra") == "allow"
        entries: dict[str, ConfigNode] = {}
        for key, child in node.value.items():
            if key not in known and not open_ended:
                hint = peer_names.hint(key) or did_you_mean(key, known, list_all=False)
                if hint.startswith("Known"):  # of all those names, only the ones of use
                    hint = did_you_mean(key, fields, list_all=False)
                self.unknown(child, f"unknown key. {hint}")
                continue
            self.defaults.known(child)
            if self.is_given(model, key, child) and self.is_supported(strict.foreign, key, child):
                entries[key] = child
        entries = strict.rewrite(strict.foreign.reshape(model, entries, self.diagnostics), self.diagnostics)
        for old, new in strict.foreign.aliases.items():
            if old in entries:
                entries[new] = merge_aliases(entries.get(new), entries.pop(old), self.diagnostics)
        walked = {
            key: self.field(model.model_fields[fields[key]].annotation, child) if key in fields else child
            for key, child in entries.items()
        }
        return replace(node, value={key: child for key, child in walked.items() if child is not None})

    def unknown(self, child: ConfigNode, message: str) -> None:
        if child.from_defaults:
            self.defaults.unknown(child, message)
        else:
            self.diagnostics.error(child, message, at_key=True)

    def is_given(self, model: type[BaseModel], key: str, child: ConfigNode) -> bool:
        """False for null and "": the default applies. An error where there is no default."""
        may_be_empty = model.may_be_empty if issubclass(model, StrictModel) else ()
        if not child.is_blank or (child.value == "" and key in may_be_empty):
            return True
        name = field_names(model).get(key)
        if name and model.model_fields[name].is_required():
            self.diagnostics.error(child, "needs a value.")
        return False

    def is_supported(self, foreign: ForeignNames, key: str, child: ConfigNode) -> bool:
        """False for names that do nothing here (one warning) and for those not built yet (an error)."""
        if key in foreign.refused_when_on and str(child.data()).lower() not in ("false", "0"):
            self.diagnostics.error(child, f"{show(child)}: {foreign.refused_when_on[key]}")
            return False
        if key in foreign.no_effect:
            self.diagnostics.warn(child, f"has no effect: {foreign.no_effect[key]}.")
            return False
        if key in foreign.unsupported:
            value = child.data()
            if value not in ([], {}) and value not in foreign.unsupported[key]:
                remedy = peer_names.nearest(general(child.path)) or "Leave this key out."
                self.diagnostics.error(child, f"{show(child)} is not supported yet. {remedy}")
            return False
        return True

    def field(self, annotation: Any, node: ConfigNode) -> ConfigNode | None:
        """A field's value with the sections inside it normalised; None when it was reported here."""
        if isinstance(node.value, bool) and is_number(annotation):
            self.diagnostics.error(node, f"{show(node)} is not a number.")
            return None
        if isinstance(node.value, list):
            inner = item_annotation(annotation)
            items = [self.field(inner, item) for item in node.value]
            return replace(node, value=[item for item in items if item is not None])
        model = section_model(annotation)
        if model and isinstance(node.value, dict):
            return self.section(model, node)
        return node


def merge_aliases(current: ConfigNode | None, other: ConfigNode, diagnostics: Diagnostics) -> ConfigNode:
    """Of two nodes that mean one field the one to keep: the process's own before a default's."""
    if current is None or (current.from_defaults and not other.from_defaults):
        return other
    differs = current.data() != other.data()
    if differs and current.from_defaults == other.from_defaults:
        names = [str(node.path[-1]) for node in (other, current)]
        if names[0] == names[1]:
            names = [dotted(node.path) for node in (other, current)]
        diagnostics.error(
            other,
            f"{names[0]!r} and {names[1]!r} mean the same, but {show(other)} and {show(current)} were given. "
            "Remove one of them.",
            at_key=True,
        )
    return current


def place_in(
    entries: dict[str, ConfigNode], section: str, key: str, node: ConfigNode, diagnostics: Diagnostics
) -> None:
    """Puts `node` into a section under `key`, unless the section has it already."""
    above = node.path[: 2 if node.from_defaults else 3]
    target = entries.get(section) or replace(node, value={}, path=(*above, section))
    if not isinstance(target.value, dict) or node.is_blank:
        return
    chosen = merge_aliases(target.value.get(key), node, diagnostics)
    entries[section] = replace(target, value={**target.value, key: chosen})


def listed(node: ConfigNode) -> ConfigNode:
    """A single value as a list of one."""
    return node if isinstance(node.value, list) else replace(node, value=[node])


def field_names(model: type[BaseModel]) -> dict[str, str]:
    """Key in the file -> field: each field's name and the aliases pydantic accepts for it."""
    names = {}
    for name, field in model.model_fields.items():
        names[name] = name
        for alias in (field.alias, field.validation_alias):
            choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
            names.update({choice: name for choice in choices if isinstance(choice, str)})
    return names


def section_model(annotation: Any) -> type[BaseModel] | None:
    """The one model a field holds, through Optional and Annotated; None when there is none or several."""
    models = [part for part in _parts(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
    return models[0] if len(models) == 1 else None


def item_annotation(annotation: Any) -> Any:
    """What the items of a list or tuple field are."""
    for part in _parts(annotation):
        if get_origin(part) in (list, tuple):
            return get_args(part)[0]
    return Any


def is_number(annotation: Any) -> bool:
    """Whether the field wants a number and has no use for true or false."""
    parts = list(_parts(annotation))
    return any(part in (int, float) for part in parts) and bool not in parts


def _parts(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _parts(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _parts(part)
    elif origin is Literal:
        yield from {type(value) for value in get_args(annotation)}
    else:
        yield annotation
