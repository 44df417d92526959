"""A normalised section becomes its model; each error of pydantic is reported at its
place.

`validate` builds the model and reports errors in words that name the value and the
remedy (`explain`, `number_remedy`). Wrong values are then left out and the rest is
built again, so that it can still be checked. `Place` is the field of a wrong value: its
bounds, its default, and its description.

`loader.py` calls it for each process, after `normalise.py`. Rules between keys are not
checked here, but in `StrictModel.check`.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from toolkit.config.reading.base import descriptions
from toolkit.config.reading.located import (
    ConfigNode,
    Diagnostics,
    KeyPath,
    general,
    odd_characters,
    show,
)
from toolkit.config.reading.normalise import (
    field_names,
    item_annotation,
    section_model,
    section_remedy,
)
from toolkit.config.reading.removed import removed_at
from toolkit.config.reading.yaml_faults import quoted
from toolkit.errors import did_you_mean

_WRONG_KIND = {
    "int": "is not a whole number.",
    "float": "is not a number.",
    "bool": "is neither true nor false.",
    "list": "is not a list.",
    "tuple": "is not a list.",
    "dict": "is not a mapping of keys and values.",
    "model": "is not a mapping of keys and values.",
}

_BOUNDS = {
    "greater_than_equal": ("ge", ">="),
    "greater_than": ("gt", ">"),
    "less_than_equal": ("le", "<="),
    "less_than": ("lt", "<"),
}


class Place(NamedTuple):
    """The field that a value is for.

    Example::

        place = place_of(DiffusionSection, ("train", "lr"))
        place.default, place.bound("ge")  # (0.0001, 0)
    """

    section: type[BaseModel]
    name: str

    @property
    def default(self) -> Any:
        """The field's default, of a list its first item; None where there is none."""
        default = self.section.model_fields[self.name].get_default(
            call_default_factory=True, validated_data={}
        )
        return default[0] if isinstance(default, tuple) and default else default

    def bound(self, name: str) -> float | None:
        """The smallest number that the field takes, `ge`, or the largest, `le`, where
        that is bounded."""
        constraints = self.section.model_fields[self.name].metadata
        bounds = (getattr(constraint, name, None) for constraint in constraints)
        return next((bound for bound in bounds if bound is not None), None)

    def says(self, pattern: str) -> str:
        """The first group of a pattern in the field's description; empty where it does
        not occur."""
        match = re.search(
            pattern, " ".join(descriptions(self.section).get(self.name, "").split())
        )
        return match[1] if match else ""


def place_of(model: type[BaseModel], path: KeyPath) -> Place | None:
    """The last field on a path of keys and indices through a section; None where the
    path leaves the fields."""
    place: Place | None = None
    annotation: Any = model
    for part in path:
        if isinstance(part, int):
            annotation = item_annotation(annotation)
            continue
        section = section_model(annotation)
        key = part.lstrip("-").replace("-", "_")  # a tool's places are flags
        name = field_names(section).get(key) if section else None
        if section is None or name is None:
            return None
        place = Place(section, name)
        annotation = section.model_fields[name].annotation
    return place


def explain(error: ErrorDetails, node: ConfigNode, place: Place | None = None) -> str:
    """One line for one entry of `ValidationError.errors()`, whose value is `node`;
    place: the field that it is for."""
    kind = error["type"]
    context = error.get("ctx", {})
    value = show(node)
    if kind == "missing":
        return "is required."
    if kind == "extra_forbidden":
        return "unknown key."
    if remedy := _as_flag(node, place):
        return f"{value} is not a value of this key. {remedy}"
    if kind in _BOUNDS:
        name, sign = _BOUNDS[kind]
        return f"{value} is out of range: must be {sign} {_number(context[name])}.{_per_cent(kind, context, node)}"
    if kind == "string_type":
        return not_text(node)
    if kind == "literal_error":
        at = general(node.path).removesuffix("[]")
        gone = place and removed_at(at, place.section, place.name, str(node.value))
        if gone:
            return f"{value} {gone}"
        choices = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"]]
        return f"{value} is unknown. {did_you_mean(str(node.value), choices)}"
    if kind == "finite_number":
        return f"{value} is not a finite number."
    if kind in ("too_short", "too_long"):
        bound = "at least" if kind == "too_short" else "at most"
        limit = context.get("min_length", context.get("max_length"))
        return f"has {context['actual_length']} entries: must be {bound} {limit}."
    if kind in ("value_error", "assertion_error"):
        return str(context["error"])
    if isinstance(node.value, list) and (kind.startswith(("int_", "float_", "bool_"))):
        return f"{value} is not one value. {_single(node)}"
    for name, message in _WRONG_KIND.items():
        if kind.startswith(f"{name}_"):
            return " ".join(filter(None, (value, message, _remedy(name, node, place))))
    # a switch is `True` for a validator
    is_shown = error["msg"].lower().startswith(value.lower())
    return error["msg"] if is_shown else f"{value}: {error['msg'].removesuffix('.')}."


def _as_flag(node: ConfigNode, place: Place | None) -> str:
    """The flag to write for a value that `--set` or `--sweep` gives: `--sweep` for
    several values of a key that takes one, else the value in the brackets that it
    needs; empty for any other, and for values of a file."""
    flag, key = node.flag
    field = place and place.section.model_fields[place.name]
    takes_one = field and item_annotation(field.annotation) is Any
    if not (key and (takes_one or node.text.startswith("("))):
        return ""
    value = node.text.strip("()[] ")
    parts = (
        [item.text for item in node.value] if isinstance(node.value, list) else [value]
    )
    if _LISTED.fullmatch(value):
        parts = re.split(r"\s*[,;|]\s*", value)
    flag = "--sweep" if takes_one and parts[1:] else flag
    value = ",".join(parts) if takes_one else f"[{value}]"
    is_other = parts[1:] or value != node.text
    return f"Write: {flag} {shlex.quote(f'{key}={value}')}" if is_other else ""


_LISTED = re.compile(r"(?!\d+,\d+$|\d{1,3}(,\d{3})+$)[\w.+-]+(\s*[,;|]\s*[\w.+-]+)+")
"""Words with commas between them, or another sign; neither `0,001` nor `1,000,000`."""


def _single(node: ConfigNode) -> str:
    texts = [item.text for item in node.value]
    if len(texts) == 1 and texts[0]:
        return f"Write {texts[0]}, without brackets or dash."
    return "Give one of them."


def _per_cent(kind: str, context: dict[str, Any], node: ConfigNode) -> str:
    """The remedy for a share of at most 1 that is given in per cent."""
    if (
        kind != "less_than_equal"
        or context["le"] != 1
        or not isinstance(node.value, int | float)
    ):
        return ""
    if not 2 <= node.value <= 100:  # 1.5 may be a slip of another kind
        return ""
    return f" For {node.value:g} %, write {node.value / 100:g}."


def _remedy(wanted: str, node: ConfigNode, place: Place | None) -> str:
    """The remedy for a value of another kind."""
    if wanted in ("list", "tuple"):
        return list_remedy(node)
    if wanted == "dict" and isinstance(node.value, str):
        return _mapping_remedy(node)
    if wanted == "model":
        if isinstance(node.value, list):
            if all(isinstance(item.value, dict) for item in node.value):
                return "Remove the '- ' before its keys."
        section = place and section_model(
            place.section.model_fields[place.name].annotation
        )
        return odd_characters(str(node.value)) or section_remedy(
            node, section or None, place and place.default
        )
    if wanted == "bool":
        return "Write true or false."
    if wanted == "int" and isinstance(node.value, float) and math.isfinite(node.value):
        least = place.bound("ge") if place else None
        numbers = (math.floor(node.value), math.ceil(node.value))
        return f"Write {' or '.join(str(number) for number in numbers if least is None or number >= least)}."
    if not isinstance(node.value, str):
        return ""
    return number_remedy(node.value, wanted == "int", place)


def _mapping_remedy(node: ConfigNode) -> str:
    """The remedy for a text where a mapping is wanted: `weight_decay=0.1 eps=1e-8` are
    keys with values."""
    pairs = [part.partition("=") for part in re.split(r"[\s,;]+", node.value.strip())]
    if not all(key and sign and value for key, sign, value in pairs):
        return "Write its keys below it, indented, each as 'key: value'."
    keys = ", ".join(f"{key}: {value}" for key, _, value in pairs)
    return f"Write '{node.path[-1]}: {{{keys}}}'."


def list_remedy(node: ConfigNode) -> str:
    """The remedy where a list was expected and `node` is another value: how its first
    entry would be written."""
    first = (
        next(iter(node.value.items()), None) if isinstance(node.value, dict) else None
    )
    if first is None:
        return "Begin each entry with '- '."
    key, child = first
    if re.match(r"-\w", key):
        return f"Write a space after the '-' of {key!r}."
    return f"Begin each entry with '- ': '- {key}:{f' {child.text}' if child.text else ''}'."


def not_text(node: ConfigNode) -> str:
    message = f"{show(node)} is not text."
    if isinstance(node.value, dict):
        [(key, child), *others] = node.value.items() or [("", node)]
        if child.text and not others:
            return (
                f"{message} A ': ' makes a key of what stands before it. Put the text in quotes: "
                + quoted(f"{key}: {child.text}")
            )
        return f"{message} If it is one, put it in quotes, the brackets too."
    if isinstance(node.value, list):
        is_entry = (
            len(node.path) > 2
            and isinstance(node.path[-2], int)
            and node.path[-3] != "process"
        )
        if is_entry and all(item.text for item in node.value):
            return f"{message} For several write an entry of '{node.path[-3]}' for each: {_entries(node)}"
        return f"{message} Give one value; if the brackets or the dash belong to a text, put it in quotes."
    return (
        message if node.value is None else f'{message} Put it in quotes: "{node.text}"'
    )


def _entries(node: ConfigNode) -> str:
    """The texts of a list, each as the entry of a list of sections."""
    return ", ".join(f"'- {node.path[-1]}: {item.text}'" for item in node.value)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


_MAX_ROUNDS = 20


def validate(
    model: type[BaseModel], node: ConfigNode, diagnostics: Diagnostics
) -> tuple[BaseModel | None, ConfigNode]:
    """The section, and the node it was made of.

    Values that are wrong are reported and left out, so that the rest can still be
    looked at (whether folders exist, say). None when what is left does not make a
    section.
    """
    declared = model.model_fields.keys()
    entries = {
        key: child
        for key, child in node.value.items()
        if key in declared or key not in ("type", "name")
    }
    node = replace(node, value=entries)
    for attempt in range(_MAX_ROUNDS):
        try:
            return model.model_validate(node.data()), node
        except ValidationError as error:
            errors = [
                entry
                for entry in error.errors(include_url=False)
                if not _is_consequence(entry, node)
            ]
        # Later rounds only show what leaving out the first round's values entails.
        if attempt == 0:
            _report(model, errors, node, diagnostics)
        wrong = {
            _removable(node, error["loc"], error["type"] == "missing")
            for error in errors
        }
        pruned = _prune(node, wrong)
        if pruned is None:
            break
        node = pruned
    return None, node


def _is_consequence(error: ErrorDetails, node: ConfigNode) -> bool:
    """Whether an error only follows from another one.

    pydantic counts the items of a list that are right, and so calls one with wrong
    items too short; and it cannot make a default from fields that are wrong.
    """
    if error["type"] == "default_factory_not_called":
        return True
    value = node.find(error["loc"])[0].value
    return (
        error["type"] == "too_short"
        and isinstance(value, list)
        and len(value) >= error["ctx"]["min_length"]
    )


def _report(
    model: type[BaseModel],
    errors: Sequence[ErrorDetails],
    node: ConfigNode,
    diagnostics: Diagnostics,
) -> None:
    """One line per value; the branches of a union that fail together are joined."""
    by_path: dict[KeyPath, tuple[ConfigNode, list[str]]] = {}
    for error in errors:
        at, rest = node.find(_key(node, error["loc"]))
        missing = error["type"] == "missing"
        path = (*at.path, error["loc"][-1]) if missing and rest else at.path
        messages = by_path.setdefault(path, (at, []))[1]
        message = explain(error, at, place_of(model, at.path[len(node.path) :]))
        if message not in messages:
            messages.append(message)
    for path, (at, messages) in by_path.items():
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
    """The smallest part of the tree that can go: the wrong value, or the mapping that
    lacks a key."""
    key = _key(node, loc)
    _, rest = node.find(key)
    return key[: len(key) - len(rest)] if rest or missing else key


def _prune(
    node: ConfigNode, wrong: set[KeyPath], at: KeyPath = ()
) -> ConfigNode | None:
    if at in wrong:
        return None
    if isinstance(node.value, dict):
        children = {
            key: _prune(child, wrong, (*at, key)) for key, child in node.value.items()
        }
        return replace(
            node,
            value={key: child for key, child in children.items() if child is not None},
        )
    if isinstance(node.value, list):
        items = [_prune(child, wrong, (*at, i)) for i, child in enumerate(node.value)]
        return replace(node, value=[item for item in items if item is not None])
    return node


# ---------------------------------------------------------------- texts that are meant
# as numbers

_COMMENT = r"\S(#|\s*//)"
_SIZE = r"\d+\s*[xX×]\s*\d+"
_POWER = r"(?:(\S+?)\s*[*x×]\s*)?10\s*(?:\^|\*\*)\s*(-?\d+)"
_GROUPED = r"[1-9]\d{0,2}(?:(?:,\d{3})+|(?: \d{3})+|(?:\.\d{3}){2,})"
_LIST = r"\d+(?:\s*[,;]\s*\d+)+"
_SIDES = r"([1-9]\d{1,4})(?:\s*,\s*|\s+)([1-9]\d{1,4})"
_DECIMAL_COMMA = r"([-+]?\d+),(\d+(?:[eE][-+]?\d+)?)"
_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_WITH_UNIT = rf"({_NUMBER})\s*([a-zA-Z×]+|[,;])"
_PER_CENT = rf"({_NUMBER})\s*%"
_MINUS = str.maketrans("\u2212\u2013\u2014", "---")
"""What a page or a word processor writes for a minus sign."""

_STEPS = r"steps?|its?|iterations?"
_EPOCHS = r"epochs?"
_UNITS = {
    _STEPS: r"(?!.*epoch).*(?:step|every).*",
    _EPOCHS: r".*epoch.*",
    r"px|pixels?": r".*(?:resolution|width|height|side).*",
    r"x|×|times|repeats?": r".*repeats.*",
    r"images?": r"batch_size",
    r"gb|gib": r"gpu",
    r"[,;]": r".*",
}
"""Unit -> the keys that count in it: behind their numbers it may be left out."""

_OFF = ("never", "none", "no", "off", "false", "disabled")
_AUTO = ("auto", "automatic", "default")


_LONGEST_NUMBER = 100
"""Characters of a number that is written another way; of a longer one none is read."""


def number_remedy(text: str, whole: bool, place: Place | None = None) -> str:
    """The remedy for a text where a number is wanted; empty where neither the text nor
    the place suggests one.

    whole: a whole number is wanted. place: the field; a unit is left out only where the
    number then means the same.
    """
    if re.search(_COMMENT, text[:_LONGEST_NUMBER]):
        return "A comment begins with a space and '#'."
    if len(text) > _LONGEST_NUMBER:  # searches would take seconds
        return ""
    if re.search(_SIZE, text):
        return "Write one number; where several may stand, a list such as [512, 768]."
    readings: dict[str, Callable[[re.Match[str]], str]] = {
        _POWER: lambda parts: f"{parts[1] or 1}e{parts[2]}",
        _GROUPED: lambda parts: re.sub(r"\D", "", parts[0]),
        r"(\d+(?:\.\d+)?)\s*[kK]": lambda parts: f"{float(parts[1]) * 1000:.0f}",
    }
    if not whole:
        readings[_DECIMAL_COMMA] = lambda parts: f"{parts[1]}.{parts[2]}"
    if whole:
        if sides := _sides(text):
            return (
                f"Write {sides[0]}."
                if len(set(sides)) == 1
                else f"Write {sides} where a list may stand."
            )
    meant = []
    for pattern, read in readings.items():
        if match := re.fullmatch(pattern, text.strip()):
            meant.append(read(match))
            break
    if re.fullmatch(_LIST, text.strip()) and not (meant and not whole):
        numbers = re.split(r"\s*[,;]\s*", text.strip())
        if not any(number.startswith("0") for number in numbers):
            meant.append(f"[{', '.join(numbers)}] where a list may stand")
    if meant:
        return f"Write {', or '.join(meant)}."
    remedy = (
        _misspelt(text)
        or (_share(text, place) if not whole else "")
        or _without_unit(text, place)
    )
    return (
        remedy
        or odd_characters(text)
        or (_in_words(text, whole, place) if place else "")
    )


def _misspelt(text: str) -> str:
    """The remedy for a number with another minus sign, or with a space before its
    exponent."""
    meant = re.sub(r"(?<=\d)\s+(?=[eE][-+]?\d)", "", text.strip().translate(_MINUS))
    return (
        f"Write {meant}."
        if meant != text.strip() and re.fullmatch(_NUMBER, meant)
        else ""
    )


def _share(text: str, place: Place | None) -> str:
    """The remedy for a number in per cent. From 100 % on only where the field is a
    share: elsewhere 1 may be a number of steps."""
    match = re.fullmatch(_PER_CENT, text.strip())
    share = round(float(match[1]) / 100, 12) if match else 1.0
    if not match or (place and place.says("(thousandths)")):
        return ""
    if share < 1 or (share == 1 and place and place.bound("le") == 1):
        return f"Write {share:g}."
    return ""


def _without_unit(text: str, place: Place | None) -> str:
    """The remedy for a number with a unit: the number, where the key counts in this
    unit, or the key that does."""
    match = re.fullmatch(_WITH_UNIT, text.strip())
    if not match:
        return ""
    number = match[1]
    unit = match[2].lower()
    key = place.name if place else ""
    for of_unit, keys in _UNITS.items():
        if re.fullmatch(of_unit, unit) and re.fullmatch(keys, key):
            return f"Write {number}."
    others: list[str] = []
    if re.fullmatch(_EPOCHS, unit):
        others = [f"{key}_n_epochs", *(["epochs"] if key == "steps" else [])]
    elif "epoch" in key and re.fullmatch(_STEPS, unit):
        others = [
            key.removesuffix("_n_epochs"),
            *(["steps"] if key == "epochs" else []),
        ]
    for other in others:
        if place and other != key and other in place.section.model_fields:
            return f"Write '{other}: {number}' instead of '{key}'."
    return ""


def _in_words(text: str, whole: bool, place: Place) -> str:
    """The remedy for a word: 0 for one that switches something off, where the field's
    description says what 0 means; the default; or a number."""
    word = text.strip().lower()
    meaning = place.says(r"(?:^|[ ;])0(?: to 1| or 1)?: ([^.;]+)")
    default = place.default
    is_off = word in _OFF and not re.search(
        r"error|warning|nothing|not trained", meaning
    )
    if meaning and (is_off or word == meaning):
        return f"Write 0 ({meaning})."
    is_number = isinstance(default, int | float)
    if word in _AUTO and not place.section.model_fields[place.name].is_required():
        return (
            f"Leave the key out{f': the default is {default:g}' if is_number else ''}."
        )
    kind = "a whole number" if whole else "a number"
    example = place.says(r"such as (\d+(?:\.\d+)?)") or (
        f"{default:g}, the default" if is_number else ""
    )
    return f"Write {kind}, such as {example}." if example else ""


def _sides(text: str) -> list[int]:
    """The sides of an image that a text lists, such as `512,768`, which does not mean
    512768; else nothing."""
    match = re.fullmatch(_SIDES, text.strip())
    numbers = [int(number) for number in match.groups()] if match else []
    return (
        numbers if all(number >= 64 and number % 8 == 0 for number in numbers) else []
    )
