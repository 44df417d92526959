"""A normalised section -> its model, with every error of pydantic reported at its place, in words that name the value
and the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from toolkit.config.located import ConfigNode, Diagnostics, KeyPath, odd_characters, show
from toolkit.config.yaml_faults import quoted
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


def explain(error: ErrorDetails, node: ConfigNode) -> str:
    """One line for one entry of `ValidationError.errors()`, whose value is `node`."""
    kind, context = error["type"], error.get("ctx", {})
    value = show(node)
    if kind == "missing":
        return "is required."
    if kind == "extra_forbidden":
        return "unknown key."
    if kind in _BOUNDS:
        name, sign = _BOUNDS[kind]
        return f"{value} is out of range: must be {sign} {_number(context[name])}."
    if kind == "string_type":
        return _not_text(node)
    if kind == "literal_error":
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
            return " ".join(filter(None, (value, message, _remedy(name, node))))
    is_shown = error["msg"].lower().startswith(value.lower())  # a switch is `True` for a validator
    return error["msg"] if is_shown else f"{value}: {error['msg'].removesuffix('.')}."


def _single(node: ConfigNode) -> str:
    texts = [item.text for item in node.value]
    return f"Write {texts[0]}, without brackets or dash." if len(texts) == 1 and texts[0] else "Give one of them."


def _remedy(wanted: str, node: ConfigNode) -> str:
    """What to write where a value of another kind stands."""
    if wanted in ("list", "tuple"):
        return list_remedy(node)
    if wanted == "dict" and isinstance(node.value, str):
        return _mapping_remedy(node)
    if wanted == "model":
        if isinstance(node.value, list) and all(isinstance(item.value, dict) for item in node.value):
            return "Remove the '- ' before its keys."
        return odd_characters(str(node.value)) or "Write its keys below it, indented, each as 'key: value'."
    if not isinstance(node.value, str):
        return ""
    return number_remedy(node.value, wanted == "int") or odd_characters(node.value)


def _mapping_remedy(node: ConfigNode) -> str:
    """What to write instead of a text where a mapping is wanted: `weight_decay=0.1 eps=1e-8` are keys with values."""
    pairs = [part.partition("=") for part in re.split(r"[\s,;]+", node.value.strip())]
    if not all(key and sign and value for key, sign, value in pairs):
        return "Write its keys below it, indented, each as 'key: value'."
    keys = ", ".join(f"{key}: {value}" for key, _, value in pairs)
    return f"Write '{node.path[-1]}: {{{keys}}}'."


def list_remedy(node: ConfigNode) -> str:
    """What to write where something else stands instead of a list."""
    first = next(iter(node.value.items()), None) if isinstance(node.value, dict) else None
    if first is None:
        return "Begin each entry with '- '."
    key, child = first
    if re.match(r"-\w", key):
        return f"Write a space after the '-' of {key!r}."
    return f"Begin each entry with '- ': '- {key}:{f' {child.text}' if child.text else ''}'."


def _not_text(node: ConfigNode) -> str:
    message = f"{show(node)} is not text."
    if isinstance(node.value, dict):
        [(key, child), *others] = node.value.items() or [("", node)]
        if child.text and not others:
            return f"{message} A ': ' makes a key of what stands before it. Put the text in quotes: " + quoted(
                f"{key}: {child.text}"
            )
        return f"{message} If it is one, put it in quotes, the brackets too."
    if isinstance(node.value, list):
        is_entry = len(node.path) > 2 and isinstance(node.path[-2], int) and node.path[-3] != "process"
        if is_entry and all(item.text for item in node.value):
            return f"{message} For several write an entry of '{node.path[-3]}' for each: {_entries(node)}"
        return f"{message} Give one value; if the brackets or the dash belong to a text, put it in quotes."
    return message if node.value is None else f'{message} Put it in quotes: "{node.text}"'


def _entries(node: ConfigNode) -> str:
    """The texts of a list, each as the entry of a list of sections."""
    return ", ".join(f"'- {node.path[-1]}: {item.text}'" for item in node.value)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


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


# ---------------------------------------------------------------- texts that are meant as numbers

_COMMENT = r"\S(#|\s*//)"
_SIZE = r"\d+\s*[xX×]\s*\d+"
_POWER = r"(?:(\S+?)\s*[*x×]\s*)?10\s*(?:\^|\*\*)\s*(-?\d+)"
_GROUPED = r"[1-9]\d{0,2}(?:(?:,\d{3})+|(?: \d{3})+|(?:\.\d{3}){2,})"
_LIST = r"\d+(?:\s*[,;]\s*\d+)+"
_SIDES = r"([1-9]\d{1,4})\s*,\s*([1-9]\d{1,4})"
_DECIMAL_COMMA = r"([-+]?\d+),(\d+(?:[eE][-+]?\d+)?)"
_UNIT = r"([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*(?:%|[a-zA-Z]{2,6}|[,;])"


def number_remedy(text: str, whole: bool) -> str:
    """What to write instead of a text; empty where nothing is recognised. whole: a whole number is wanted."""
    if re.search(_COMMENT, text):
        return "A comment begins with a space and '#'."
    if re.search(_SIZE, text):
        return "Write one number; where several may stand, a list such as [512, 768]."
    readings: dict[str, Callable[[re.Match[str]], str]] = {
        _POWER: lambda found: f"{found[1] or 1}e{found[2]}",
        _GROUPED: lambda found: re.sub(r"\D", "", found[0]),
        r"(\d+(?:\.\d+)?)\s*[kK]": lambda found: f"{float(found[1]) * 1000:.0f}",
        _DECIMAL_COMMA if not whole else r"(?!)": lambda found: f"{found[1]}.{found[2]}",
        _UNIT: lambda found: found[1],
    }
    if whole and (sides := _sides(text)):
        return f"Write {sides[0]}." if len(set(sides)) == 1 else f"Write {sides} where a list may stand."
    found = ((read, re.fullmatch(pattern, text.strip())) for pattern, read in readings.items())
    meant = [read(match) for read, match in found if match][:1]
    if re.fullmatch(_LIST, text.strip()) and not (meant and not whole):
        numbers = re.split(r"\s*[,;]\s*", text.strip())
        if not any(number.startswith("0") for number in numbers):
            meant.append(f"[{', '.join(numbers)}] where a list may stand")
    return f"Write {', or '.join(meant)}." if meant else ""


def _sides(text: str) -> list[int]:
    """The sides of an image that a text lists, such as `512,768`, which does not mean 512768; else nothing."""
    found = re.fullmatch(_SIDES, text.strip())
    numbers = [int(number) for number in found.groups()] if found else []
    return numbers if all(number >= 64 and number % 8 == 0 for number in numbers) else []
