"""A normalised section -> its model, with every error reported at its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from toolkit.config.diagnostics import Diagnostics
from toolkit.config.located import ConfigNode, KeyPath
from toolkit.config.messages import explain

_MAX_ROUNDS = 20


def validate(model: type[BaseModel], node: ConfigNode, diagnostics: Diagnostics) -> tuple[BaseModel | None, ConfigNode]:
    """The section, and the node it was made of.

    Values that are wrong are reported and left out, so that the rest can still be looked at (whether
    folders exist, say). None when what is left does not make a section.
    """
    declared = model.model_fields.keys()
    node = replace(node, value={k: v for k, v in node.value.items() if k in declared or k not in ("type", "name")})
    for attempt in range(_MAX_ROUNDS):
        try:
            return model.model_validate(node.data()), node
        except ValidationError as error:
            errors = [entry for entry in error.errors(include_url=False) if not _is_consequence(entry, node)]
        # Later rounds only show what leaving out the first round's values entails.
        if attempt == 0:
            _report(errors, node, diagnostics)
        wrong = {_removable(node, error["loc"], error["type"] == "missing") for error in errors}
        pruned = _prune(node, wrong)
        if pruned is None:
            break
        node = pruned
    return None, node


def _is_consequence(error: ErrorDetails, node: ConfigNode) -> bool:
    """Whether an error only follows from another one.

    pydantic counts the items of a list that are right, and so calls one with wrong items too short; and it
    cannot make a default from fields that are wrong.
    """
    if error["type"] == "default_factory_not_called":
        return True
    found = node.find(error["loc"])[0].value
    return error["type"] == "too_short" and isinstance(found, list) and len(found) >= error["ctx"]["min_length"]


def _report(errors: Sequence[ErrorDetails], node: ConfigNode, diagnostics: Diagnostics) -> None:
    """One line per value; the branches of a union that fail together are joined."""
    found: dict[KeyPath, tuple[ConfigNode, list[str]]] = {}
    for error in errors:
        at, rest = node.find(_key(node, error["loc"]))
        missing = error["type"] == "missing"
        path = (*at.path, error["loc"][-1]) if missing and rest else at.path
        messages = found.setdefault(path, (at, []))[1]
        message = explain(error, at)
        if message not in messages:
            messages.append(message)
    for path, (at, messages) in found.items():
        if not diagnostics.reported(path) and not diagnostics.reported(at.path):
            diagnostics.error(at, " Or: ".join(messages), path=path)


def _key(node: ConfigNode, loc: Sequence[str | int]) -> KeyPath:
    """`loc` without the names of union branches, which pydantic mixes in."""
    key: list[str | int] = []
    for i, part in enumerate(loc):
        child = node.child(part)
        if child is not None:
            node = child
            key.append(part)
        elif i == len(loc) - 1:
            key.append(part)
    return tuple(key)


def _removable(node: ConfigNode, loc: Sequence[str | int], missing: bool) -> KeyPath:
    """The smallest part of the tree that can go: the wrong value, or the mapping that lacks a key."""
    key = _key(node, loc)
    _, rest = node.find(key)
    return key[: len(key) - len(rest)] if rest or missing else key


def _prune(node: ConfigNode, wrong: set[KeyPath], at: KeyPath = ()) -> ConfigNode | None:
    if at in wrong:
        return None
    if isinstance(node.value, dict):
        children = {key: _prune(child, wrong, (*at, key)) for key, child in node.value.items()}
        return replace(node, value={key: child for key, child in children.items() if child is not None})
    if isinstance(node.value, list):
        items = [_prune(child, wrong, (*at, i)) for i, child in enumerate(node.value)]
        return replace(node, value=[item for item in items if item is not None])
    return node
