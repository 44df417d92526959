"""What pydantic found, in words that name the value and the remedy."""

from __future__ import annotations

import re

from pydantic_core import ErrorDetails

from toolkit.config.located import ConfigNode, show
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
        return f"{value} is not one of them. {did_you_mean(str(node.value), choices)}"
    if kind == "finite_number":
        return f"{value} is not a finite number."
    if kind in ("too_short", "too_long"):
        bound = "at least" if kind == "too_short" else "at most"
        limit = context.get("min_length", context.get("max_length"))
        return f"has {context['actual_length']} entries: must be {bound} {limit}."
    if kind in ("value_error", "assertion_error"):
        return str(context["error"])
    for name, message in _WRONG_KIND.items():
        if kind.startswith(f"{name}_"):
            return f"{value} {message}"
    return error["msg"] if error["msg"].startswith(value) else f"{value}: {error['msg']}."


def _not_text(node: ConfigNode) -> str:
    if isinstance(node.value, dict | list) or node.value is None:
        return f"{show(node)} is not text."
    return f'{show(node)} is not text. Put it in quotes: "{node.text}"'


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
