"""A section as written -> the section as its model names it.

`config.defaults` are merged in, keys of other programs become ours where there are any,
other shapes of our keys become fields, keys without a value go, names nobody knows are
reported and left out, so that the model can then report every other error in the same
pass."""

from __future__ import annotations

import re
import shlex
import types
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ValidationError

from toolkit.config.reading.base import StrictModel, all_findings
from toolkit.config.reading.findings import JobContext
from toolkit.config.reading.foreign import ForeignKeys, ForeignName, foreign_keys
from toolkit.config.reading.located import (
    DEFAULTS,
    ConfigNode,
    Diagnostics,
    dotted,
    general,
    odd_characters,
    show,
)
from toolkit.config.reading.removed import removed_at
from toolkit.config.reading.yaml_faults import quoted
from toolkit.errors import did_you_mean, in_series
from toolkit.files.run_files import saved_as, saved_like


def merge_defaults(
    process: ConfigNode, defaults: ConfigNode, diagnostics: Diagnostics
) -> ConfigNode:
    """The process with what it does not give taken from `defaults`: mappings merge, all
    else is replaced.

    Warns where a list of sections, such as `datasets`, is replaced: one might take it
    for what they have in common.
    """
    if not isinstance(process.value, dict) or not isinstance(defaults.value, dict):
        return process
    entries = dict(process.value)
    for key, default in defaults.value.items():
        given = entries.get(key)
        if given is None or given.is_blank:
            entries[key] = default
        elif isinstance(given.value, dict):
            entries[key] = merge_defaults(given, default, diagnostics)
        elif isinstance(default.value, list) and any(
            isinstance(item.value, dict) for item in default.value
        ):
            diagnostics.warn(
                given,
                f"replaces the whole list of {dotted(default.path)}, line {default.key_at.line}; "
                "lists are not merged.",
            )
    return replace(process, value=entries)


class UnusedDefaults:
    """Finds the keys of `config.defaults` that no process of the job knows.

    A job may hold processes of different types; a default that only one of them knows
    is left out for the others. One that none knows is an error.

    Example::

        normaliser = Normaliser(diagnostics)  # has one for all processes
        normaliser.process(model, node)
        normaliser.defaults.report(diagnostics)
    """

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._unknown: dict[str, tuple[ConfigNode, str]] = {}

    def known(self, node: ConfigNode) -> None:
        """A process knows the key of this node, its own or a default's: its mappings
        may hold defaults."""
        below_process = node.path[2:] if node.from_defaults else node.path[3:]
        self._known.add(str((*DEFAULTS, *below_process)))

    def unknown(self, node: ConfigNode, message: str) -> None:
        """Notes an unknown key of `config.defaults`. Only the first message about a key
        is kept."""
        self._unknown.setdefault(str(node.path), (node, message))

    def report(self, diagnostics: Diagnostics) -> None:
        """Adds an error for each noted default that no process of the job knows."""
        for path, (node, message) in self._unknown.items():
            if path not in self._known:
                diagnostics.error(node, message, at_key=True)


_NO_DEFAULT = "the default is none"

_GROUPED = re.compile(r"[1-9]\d{0,2}\.\d{3}")
"""A number that many write for a thousand times as much: 2.000."""


def _default_of(model: type[BaseModel], name: str) -> str:
    """The default of a field, in words."""
    default = model.model_fields[name].get_default(
        call_default_factory=True, validated_data={}
    )
    if isinstance(default, BaseModel):
        return "the defaults of its keys are taken"
    if default is None or default == "" or default == () or default == {}:
        return _NO_DEFAULT
    if isinstance(default, tuple):
        default = ", ".join(map(str, default))
    text = str(default).lower() if isinstance(default, bool) else str(default)
    return f"the default is {text}"


def rules_of(model: type[BaseModel] | None) -> type[StrictModel]:
    """The class variables that say how a section is read: the base's, so none, where it
    is not a StrictModel."""
    return model if model and issubclass(model, StrictModel) else StrictModel


class Normaliser:
    """Walks a section along its model. One instance serves all processes of a job.

    Example::

        node = Normaliser(diagnostics).process(find_model("sd_trainer"), node)
        section, node = validate(find_model("sd_trainer"), node, diagnostics)
    """

    def __init__(self, diagnostics: Diagnostics) -> None:
        self.diagnostics = diagnostics
        self.defaults = UnusedDefaults()
        self.model: type[BaseModel] | None = None
        """Model of the process that was read last."""

    def process(
        self,
        model: type[BaseModel],
        node: ConfigNode,
        also_known: frozenset[str] = frozenset({"type", "name"}),
    ) -> ConfigNode:
        """The section of a process, or another that stands alone, under the names of
        `model`, with the keys of other programs rewritten where it has any. also_known:
        keys that are kept though the model lacks them."""
        self.model = model
        if not is_ours(model, node, also_known):
            node = foreign_keys().rewritten(
                model, node, self.diagnostics, self.defaults.known
            )
        return self.section(model, node, also_known)

    def places(self) -> dict[str, list[str]]:
        """Key -> sections of the process that was read last that have it, as
        `places_of_keys` names them."""
        return places_of_keys(self.model, foreign_keys()) if self.model else {}

    def section(
        self,
        model: type[BaseModel],
        node: ConfigNode,
        also_known: frozenset[str] = frozenset(),
    ) -> ConfigNode:
        """`node` under the names of `model`; `also_known` are keys that are kept though
        it lacks them."""
        if not isinstance(node.value, dict):
            return node
        fields = field_names(model)
        strict = rules_of(model)
        known = {*fields, *also_known, *strict.other_shapes}
        open_ended = model.model_config.get("extra") == "allow"
        entries: dict[str, ConfigNode] = {}
        for key, child in node.value.items():
            if key not in known and not open_ended:
                gone = removed_at(general(child.path), model, key)
                self.unknown(
                    child, gone or f"unknown key. {self.hint(model, key, node)}"
                )
                continue
            self.defaults.known(child)
            if self.is_given(model, key, child):
                entries[key] = child
        entries = strict.rewrite(entries, self.diagnostics)
        walked = {
            key: self.field(model.model_fields[fields[key]].annotation, child)
            if key in fields
            else child
            for key, child in entries.items()
        }
        for key in strict.saved_weights:
            child = walked.get(key)
            if child:
                walked[key] = self.saved(child)
        return replace(
            node,
            value={key: child for key, child in walked.items() if child is not None},
        )

    def saved(self, node: ConfigNode) -> ConfigNode:
        """A name of weights, `FILE` or `FILE:STRENGTH`, or a list of them, as this
        program has it."""
        if isinstance(node.value, list):
            items = [self.saved(item) for item in node.value]
            parts = [
                item.value if isinstance(item.value, list) else [item] for item in items
            ]
            return replace(node, value=[*chain.from_iterable(parts)])
        text = node.value if isinstance(node.value, str) else ""
        if of_pattern := saved_like(text):
            names = ", ".join(file.name for file in of_pattern)
            self.diagnostics.warn(
                node, f"{text!r} is found in '{of_pattern[0].parent}': {names}."
            )
            files = [
                replace(node, value=str(match), text=str(match)) for match in of_pattern
            ]
            return replace(node, value=files)
        file, colon, strength = text.rpartition(":")
        if not colon or text.endswith(".safetensors"):
            file = text
            colon = ""
            strength = ""
        path = saved_as(file)
        if path is None:
            return node
        self.diagnostics.warn(
            node, f"{file!r} is found as '{path}', where its run wrote it."
        )
        written = f"{path}{colon}{strength}"
        return replace(node, value=written, text=written)

    def hint(self, model: type[BaseModel], key: str, node: ConfigNode) -> str:
        """The remedy for a key that the section `node` does not have: odd characters, a
        name of another program, the right section, a name spelt alike, else all keys of
        the section."""
        what = (
            odd_characters(key)
            or _meant(key, model)
            or foreign_keys().hint(key)
            or self.belongs(key, node)
        )
        return what or _near(key, model) or all_keys(node)

    def belongs(self, key: str, node: ConfigNode) -> str:
        """The place where a key belongs that `node` does not have; empty where no
        section has it."""
        places = nearest(self.places().get(key, []))
        beside = general(node.path).partition(".")[0].removesuffix("[]")
        named = [
            repr(place) if place else f"the process, beside {beside!r}"
            for place in places
        ]
        return f"It belongs in {' or '.join(named)}." if named else ""

    def unknown(self, child: ConfigNode, message: str) -> None:
        """Reports an unknown key at its line. A key from `config.defaults` is only
        noted, since another process may know it."""
        if child.from_defaults:
            self.defaults.unknown(child, message)
        else:
            self.diagnostics.error(child, message, at_key=True)

    def is_given(self, model: type[BaseModel], key: str, child: ConfigNode) -> bool:
        """False for null and "": the default applies. An error where there is no
        default; a warning where nothing is written, and of an empty text in the place
        of another default. A written null is meant."""
        strict = rules_of(model)
        name = field_names(model).get(key)
        if not child.is_blank or (child.value == "" and key in strict.may_be_empty):
            return True
        if name and model.model_fields[name].is_required():
            self.diagnostics.error(child, "needs a value.")
            return False
        row = strict.other_shapes.get(key)
        fields = [
            name,
            *(ours.rpartition(".")[2] for ours in (row.ours if row else ())),
        ]
        given = (field for field in fields if field in model.model_fields)
        name = next(
            (field for field in given if not model.model_fields[field].is_required()),
            None,
        )
        is_left_out = child.value is None and child.text == ""
        is_empty_text = (
            child.value == "" and child.written is None and key in field_names(model)
        )
        default = (
            _default_of(model, name) if name and (is_left_out or is_empty_text) else ""
        )
        if default and (is_left_out or default != _NO_DEFAULT):
            self.diagnostics.warn(
                child, f"has no value, and counts as not given: {default}."
            )
        return False

    def field(self, annotation: Any, node: ConfigNode) -> ConfigNode | None:
        """A field's value with the sections inside it normalised; None when it was
        reported here."""
        if isinstance(node.value, bool) and is_number(annotation):
            self.diagnostics.error(node, f"{show(node)} is not a number.")
            return None
        if isinstance(node.value, list):
            inner = item_annotation(annotation)
            items = [self.field(inner, item) for item in node.value]
            return replace(node, value=[item for item in items if item is not None])
        model = section_model(annotation)
        strict = rules_of(model)
        if strict.short_for and not isinstance(node.value, dict):
            node = replace(node, value={strict.short_for: node})
        if model and isinstance(node.value, dict):
            return self.section(model, node)
        if model and strict.lone_key:
            remedy = as_section(node, strict.lone_key)
            kinds = set(_parts(model.model_fields[strict.lone_key].annotation))
            is_switch = isinstance(node.value, bool)
            if bool not in kinds if is_switch else kinds == {bool}:
                remedy = section_remedy(
                    node, model, None if type(None) in _parts(annotation) else model
                )
            self.diagnostics.error(
                node, f"{show(node)} is not a mapping of keys and values. {remedy}"
            )
        elif (
            is_whole_number(annotation) and node.plain and _GROUPED.fullmatch(node.text)
        ):
            whole = node.text.partition(".")[0]
            digits = node.text.replace(".", "")
            self.diagnostics.error(
                node,
                f"{show(node)} is {whole}, with decimals. Write {digits}, or {whole}.",
            )
            return None
        return node


def is_ours(
    annotation: Any, node: ConfigNode, also_known: frozenset[str] = frozenset()
) -> bool:
    """Whether our sections have every key of a value. annotation: of its field, or the
    section's model."""
    if isinstance(node.value, list):
        return all(is_ours(item_annotation(annotation), item) for item in node.value)
    model = section_model(annotation) or section_model(item_annotation(annotation))
    if model is None or not isinstance(node.value, dict):
        return True
    fields = field_names(model)
    strict = rules_of(model)
    known = {*fields, *strict.other_shapes, *also_known}
    if not node.value.keys() <= known:
        return False
    return all(
        is_ours(model.model_fields[fields[key]].annotation, child)
        for key, child in node.value.items()
        if key in fields
    )


def _meant(key: str, model: type[BaseModel]) -> str:
    """The remedy for a word that people write for a key: by the section's table, or
    where the word is a part of the name of its main key (`path` for `folder_path`)."""
    strict = rules_of(model)
    meant = strict.common_words.get(
        key, strict.lone_key if key in strict.lone_key.split("_") else ""
    )
    return meant if " " in meant or not meant else f"Did you mean {meant!r}?"


def _near(key: str, model: type[BaseModel]) -> str:
    """The name like `key` that has an effect, or else the fields of a short section."""
    fields = field_names(model)
    hint = did_you_mean(
        key, {*fields, *read_names(other_names(model, foreign_keys()))}, list_all=False
    )
    return (
        hint
        if hint.startswith("Did you mean")
        else did_you_mean(key, fields, list_all=False)
    )


def all_keys(section: ConfigNode) -> str:
    """The page that lists the keys of a section, as a sentence."""
    place = general(section.path)
    return f"docs/config.md lists the keys of {repr(place) if place else 'a process'}."


def other_names(
    section: type[BaseModel], foreign: ForeignKeys
) -> Mapping[str, ForeignName]:
    """The names that a section reads besides its fields: its other shapes, and the keys
    of other programs."""
    return {**rules_of(section).other_shapes, **foreign.rows(section)}


def read_names(rows: Mapping[str, ForeignName]) -> list[str]:
    """The names of other programs that have an effect."""
    return [
        key for key, row in rows.items() if row.how in ("renamed_to", "converted_to")
    ]


def places_of_keys(
    model: type[BaseModel], foreign_keys: ForeignKeys
) -> dict[str, list[str]]:
    """Key -> the sections in `model` that have it as a field or another shape of one:
    `train`, `datasets[]`, and "" for `model` itself; where none has, those that take it
    as a name of other programs.

    Where several sections have one model, the first is named.
    """
    places: dict[str, list[str]] = {}
    foreign: dict[str, list[str]] = {}
    visited: set[type[BaseModel]] = set()
    waiting = deque([(model, "")])
    while waiting:
        section, at = waiting.popleft()
        if section in visited:
            continue
        visited.add(section)
        for key in read_names(other_names(section, foreign_keys)):
            foreign.setdefault(key, []).append(at)
        for key in rules_of(section).other_shapes:
            places.setdefault(key, []).append(at)
        for key, name in field_names(section).items():
            places.setdefault(key, []).append(at)
            annotation = section.model_fields[name].annotation
            below = f"{at}.{key}".removeprefix(".")
            for child, place in (
                (annotation, below),
                (item_annotation(annotation), f"{below}[]"),
            ):
                if inner := section_model(child):
                    waiting.append((inner, place))
    return foreign | places


def nearest(sections: Sequence[str]) -> list[str]:
    """Up to three of the sections that have a key, those that are nested least; "" is
    the process itself."""
    depths = [len(section.split(".")) if section else 0 for section in sections]
    ranked = zip(sections, depths, strict=True)
    return [section for section, depth in ranked if depth == min(depths)][:3]


def merge_aliases(
    current: ConfigNode | None, other: ConfigNode, diagnostics: Diagnostics
) -> ConfigNode:
    """The one to keep of two nodes that mean one field: the process's own before a
    default's."""
    if current is None or (current.from_defaults and not other.from_defaults):
        return other
    differs = current.data() != other.data()
    if differs and current.from_defaults == other.from_defaults:
        names = [str(node.path[-1]) for node in (other, current)]
        if names[0] == names[1]:
            names = [dotted(node.path) for node in (other, current)]
        given, kept = (other, current) if any(other.flag) else (current, other)
        flag, _ = given.flag
        remedy = "Remove one of them."
        if flag and not any(kept.flag):
            value = given.text if flag == "--set" else "..."
            remedy = f"Write: {flag} {shlex.quote(f'{dotted(kept.path)}={value}')}"
        both = f"{show(other)} and {show(current)}"
        said = (
            f"is given twice, as {both}"
            if names[0] == names[1]
            else f"{names[0]!r} and {names[1]!r} mean the same, but {both} were given"
        )
        diagnostics.error(other, f"{said}. {remedy}", at_key=True)
    return current


def place_in(
    entries: dict[str, ConfigNode],
    section: str,
    key: str,
    node: ConfigNode,
    diagnostics: Diagnostics,
) -> None:
    """Puts `node` into `entries[section]` under `key`, and makes a missing section. A
    blank node is ignored. Where the section has the key already, `merge_aliases`
    decides."""
    above = node.path[: 2 if node.from_defaults else 3]
    target = entries.get(section) or replace(node, value={}, path=(*above, section))
    if not isinstance(target.value, dict) or node.is_blank:
        return
    chosen = merge_aliases(target.value.get(key), node, diagnostics)
    entries[section] = replace(target, value={**target.value, key: chosen})


def listed(node: ConfigNode) -> ConfigNode:
    """A node that is a list: `node` itself, or a copy with its value as the one
    item."""
    return node if isinstance(node.value, list) else replace(node, value=[node])


def field_names(model: type[BaseModel]) -> dict[str, str]:
    """Key in the file -> field: each field's name and the aliases pydantic accepts for
    it."""
    names = {}
    for name, field in model.model_fields.items():
        names[name] = name
        for alias in (field.alias, field.validation_alias):
            choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
            names.update(
                {choice: name for choice in choices if isinstance(choice, str)}
            )
    return names


def section_model(annotation: Any) -> type[BaseModel] | None:
    """The one model a field holds, through Optional and Annotated; None when there is
    none or several."""
    models = [
        part
        for part in _parts(annotation)
        if isinstance(part, type) and issubclass(part, BaseModel)
    ]
    return models[0] if len(models) == 1 else None


def item_annotation(annotation: Any) -> Any:
    """The type of the items of a list or tuple field. Any where the field is
    neither."""
    for part in _parts(annotation):
        if get_origin(part) in (list, tuple):
            return get_args(part)[0]
    return Any


def is_number(annotation: Any) -> bool:
    """Whether a field takes a number, and neither text nor true and false.

    >>> is_number(int | None), is_number(float | str)
    (True, False)
    """
    parts = list(_parts(annotation))
    return any(part in (int, float) for part in parts) and not {bool, str} & set(parts)


def is_whole_number(annotation: Any) -> bool:
    """Whether the field takes whole numbers only."""
    parts = list(_parts(annotation))
    return int in parts and float not in parts


def as_section(node: ConfigNode, key: str) -> str:
    """The remedy for a value that is given instead of a section: a key of the section
    for it."""
    text = node.text if node.plain else quoted(node.text)
    odd = odd_characters(str(node.value))
    if odd or isinstance(node.path[-1], int):
        return odd or f"Write '- {key}: {text}'."
    return f"Write '{node.path[-1]}: {{{key}: {text}}}'."


def section_remedy(
    node: ConfigNode, model: type[BaseModel] | None, default: Any
) -> str:
    """The remedy for a single value that is given instead of a section without a key
    for it.

    default: of the field. A switch means the section with its defaults, or none; model:
    None where it is not known.
    """
    required = (
        [
            repr(name)
            for name, field in model.model_fields.items()
            if field.is_required()
        ]
        if model
        else []
    )
    if node.value is True and model and _works_empty(model):
        return f"Write '{node.path[-1]}: {{}}' for its defaults."
    if node.value is False and model and default is None:
        return "Leave the key out."
    needed = (
        f"; {in_series(required)} {'is' if len(required) == 1 else 'are'} required"
        if required
        else ""
    )
    return f"Write its keys below it, indented, each as 'key: value'{needed}."


def _works_empty(model: type[BaseModel]) -> bool:
    """Whether a section with the defaults of all keys has no error."""
    try:
        section = model.model_validate({})
    except ValidationError:
        return False
    findings = all_findings(section, JobContext("job"))
    return not any(finding.severity == "error" for finding in findings)


def is_text(annotation: Any) -> bool:
    """Whether a field takes only text, or text and null.

    >>> is_text(str | None), is_text(str | int)
    (True, False)
    """
    return set(_parts(annotation)) <= {str, type(None)}


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
