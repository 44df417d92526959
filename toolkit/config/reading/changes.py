"""`--set train.lr=2e-4`: keys of a job that the command line changes.

`read_changes` reads the words. `with_changes` puts the values into the tree of the file
before anything is filled in or checked, so that a changed key is treated as an edited
one; messages name the flag in place of a line. A key without `process.N` in front
belongs to the one process that has it, `process.*` to each that has it.

`parted_values` finds values that a shell has parted at their spaces.

`loader.py` calls it. `redacted_copy.py` writes the changes into the saved text.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from pydantic import BaseModel

from toolkit.config.reading.located import (
    ConfigNode,
    Diagnostics,
    KeyPath,
    SourceLocation,
)
from toolkit.config.reading.removed import removed_at, row_above
from toolkit.config.reading.validate import place_of
from toolkit.config.reading.yaml_reader import read_yaml, scalar_value
from toolkit.errors import ConfigErrors, UserError, did_you_mean

FindModel = Callable[[str], type[BaseModel] | None]
"""A process type -> its section model, or None when it has none. Raises UserError for
an unknown type."""

_KEY = re.compile(r"[A-Za-z_][\w-]*(?:\.(?:[\w-]+|\*)|\[(?:\d+|\*)\])*")
_PAIR = rf"{_KEY.pattern}\s*="
_OTHER_SIGN = re.compile(rf"^(?!.*=)({_KEY.pattern})(?:\s*[:,]|\s)\s*(?=\S)")
_QUOTED = re.compile(r"""(["'])(\{.*: .*\})\1""")
"""A mapping, in quotes for the shell once more than it needs them."""

_PROCESS = ("config", "process")
NAME = ("config", "name")


class Change(NamedTuple):
    """A key, dotted, and the text of its new value.

    >>> read_changes(["train.lr=2e-4"])
    (Change(key='train.lr', text='2e-4', place='--set train.lr'),)
    """

    key: str
    text: str
    place: str
    """What messages about it begin with."""


def read_changes(words: Sequence[str], flag: str = "--set") -> tuple[Change, ...]:
    """The changes of the words `KEY=VALUE`. Raises UserError for any other."""
    pairs = [word.partition("=") for word in words]
    for word, (key, sign, _) in zip(words, pairs, strict=True):
        if not (sign and _KEY.fullmatch(key.strip())):
            raise UserError(
                f"{flag} {word}: write KEY=VALUE, such as {flag} train.lr=1e-4"
            )
    return tuple(
        Change(key, _QUOTED.sub(r"\2", text), f"{flag} {key}")
        for key, _, text in (map(str.strip, pair) for pair in pairs)
    )


def parted_values(words: Sequence[str], flag: str) -> str:
    """What to write where a value of a flag has become several words, or has another
    sign than `=`; empty where all are as they should be.

    >>> parted_values(["trigger_word=my", "cat"], "--set")
    "--set: each KEY=VALUE is one word for the shell. Write: --set 'trigger_word=my cat'"
    """
    sign = "," if flag == "--sweep" else " "
    meant = [
        _OTHER_SIGN.sub(r"\1=", re.sub(f"{sign}*\0", sign, part))
        for part in re.split(f"\0(?={_PAIR})", "\0".join(words))
    ]
    write = f"Write: {flag} {shlex.join(meant)}"
    is_parted = bool(words) and meant != [*words]
    return f"{flag}: each KEY=VALUE is one word for the shell. {write}" * is_parted


def with_changes(
    root: ConfigNode,
    changes: Sequence[Change],
    find_model: FindModel,
    diagnostics: Diagnostics,
) -> tuple[ConfigNode, list[KeyPath]]:
    """The tree with all changes, and their places in it. root: as read, nothing filled
    in. What cannot be set is reported."""
    paths: list[KeyPath] = []
    for change in changes:
        at = SourceLocation(0, 0, change.place)
        try:
            value = _value(change.text, at)
            for path in _places(root, change.key, find_model):
                root, path = put(root, path, value)
                paths.append(path)
        except ConfigErrors:
            raise
        except (UserError, ValueError) as error:  # ValueError: no number, no text
            diagnostics.error_at(at, (), str(error))
    return root, paths


def _value(text: str, at: SourceLocation) -> ConfigNode:
    """A value as a job has it: a list, a mapping or a text in quotes, else one word or
    sentence."""
    text.encode()  # of bytes that are no text, nothing can be saved
    if text[:1] not in ("[", "{", '"', "'"):
        return ConfigNode(scalar_value(text), (), at, at, text=text, plain=True)
    inside = Diagnostics(at.file)
    node: ConfigNode = read_yaml(f"value: {text}", inside).value["value"]
    inside.raise_errors()
    return replace(node, key_at=at, value_at=at)


def _moved(node: ConfigNode, path: KeyPath, at: SourceLocation) -> ConfigNode:
    """A node and those below it, at a place in the job."""
    value = node.value
    if isinstance(value, dict):
        value = {key: _moved(child, (*path, key), at) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_moved(item, (*path, i), at) for i, item in enumerate(value)]
    return replace(node, value=value, path=path, key_at=at, value_at=at, span=(0, 0))


def put(
    node: ConfigNode, path: KeyPath, value: ConfigNode, done: KeyPath = ()
) -> tuple[ConfigNode, KeyPath]:
    """The tree with a value at a path, and that path as the tree has it. Mappings on
    the way that it lacks are made. Raises UserError where a list lacks the entry."""
    if not path:
        return _moved(value, done, SourceLocation(0, 0, value.key_at.file)), done
    part, *rest = path
    if isinstance(node.value, list):
        if not (isinstance(part, int) and part < len(node.value)):
            raise UserError(
                f"the list has {len(node.value)} entries, counted from 0: there is no {part}."
            )
        new, whole = put(node.value[part], tuple(rest), value, (*done, part))
        items = [new if i == part else item for i, item in enumerate(node.value)]
        return replace(node, value=items), whole
    at = value.key_at
    if not isinstance(node.value, dict):
        node = ConfigNode({}, done, at, at)
    key = str(part)
    below = node.value.get(key) or ConfigNode({}, (*done, key), at, at)
    new, whole = put(below, tuple(rest), value, (*done, key))
    return replace(node, value={**node.value, key: new}), whole


def _places(root: ConfigNode, key: str, find_model: FindModel) -> Iterator[KeyPath]:
    """Where in the file a key stands, or would. Raises UserError where no process has
    it, or several have."""
    words = re.sub(r"\[(\d+|\*)\]", r".\1", key).split(".")
    path: KeyPath = tuple(int(word) if word.isdigit() else word for word in words)
    if path[0] in ("process", "defaults", "name"):
        path = ("config", *path)
    elif path[0] not in ("job", "config", "meta"):
        path = (*_PROCESS, "", *path)
    if path[:2] != _PROCESS or len(path) < 4:
        yield path
        return
    which, inside = path[2], path[3:]
    listed = root.find(_PROCESS)[0].value
    entries = listed if isinstance(listed, list) else []
    if not entries:  # said with its place
        return
    if which not in ("", "*", *range(len(entries))):
        end = len(entries) - 1
        raise UserError(f"processes are counted from 0, and process.{end} is the last.")
    if isinstance(which, int):
        numbers = [which]
    else:
        models = [_model(entry, find_model) for entry in entries]
        numbers = _that_have(entries, models, inside)
        if which == "*" or len(entries) == 1:
            numbers = numbers if which == "*" else [0]
        elif not numbers:
            numbers = _that_have(entries, models, inside[:1])
        dotted = ".".join(map(str, inside))
        gone = removed_at(row_above(dotted))
        if gone and not any(model and place_of(model, inside) for model in models):
            raise UserError(gone)
        if not numbers:
            known = {name for model in models if model for name in model.model_fields}
            raise UserError(
                f"no process of this job has the key {dotted}. {did_you_mean(str(inside[0]), known, list_all=False)}"
            )
        if which != "*" and len(numbers) > 1:
            ways = [f"process.{number}.{dotted}" for number in (*numbers, "*")]
            raise UserError(
                f"{len(numbers)} processes of this job have this key. Write {' or '.join(ways)} (* is each of them)."
            )
    for number in numbers:
        _refuse_default(root, entries[number], inside)
        yield (*_PROCESS, number, *inside)


def _refuse_default(root: ConfigNode, entry: ConfigNode, inside: KeyPath) -> None:
    """Raises UserError for an entry of a list that only `defaults` has."""
    defaults = root.child("config").child("defaults")  # type: ignore[union-attr]  # it has processes
    for depth, part in enumerate(inside):
        above = inside[:depth]
        if not isinstance(part, int) or not defaults or not entry.find(above)[1]:
            continue
        if isinstance(defaults.find(above)[0].value, list):
            whole = ".".join(map(str, inside))
            raise UserError(
                f"the list stands in 'defaults'. Write defaults.{whole} for all processes."
            )


def _model(entry: ConfigNode, find_model: FindModel) -> type[BaseModel] | None:
    kind = entry.child("type")
    try:
        return find_model(str(kind.value)) if kind is not None else None
    except UserError:  # said later, with its place
        return None


def _that_have(
    entries: Sequence[ConfigNode],
    models: Sequence[type[BaseModel] | None],
    inside: KeyPath,
) -> list[int]:
    return [
        index
        for index, (entry, model) in enumerate(zip(entries, models, strict=True))
        if not entry.find(inside)[1] or (model and place_of(model, inside))
    ]
