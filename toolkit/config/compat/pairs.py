"""Arguments as texts `name=value`, the way musubi-tuner's `optimizer_args` and `network_args` have them."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from typing import Any

from toolkit.config.diagnostics import Diagnostics
from toolkit.config.located import ConfigNode, show
from toolkit.config.normalise import merge_aliases

_BETWEEN = re.compile(r"\s+(?=[A-Za-z_]\w*\s*=)")


def read_pairs(node: ConfigNode, diagnostics: Diagnostics) -> ConfigNode:
    """`["a=1", "b=[2, 3]"]`, or the same in one text, as a mapping; numbers and lists of texts are read."""
    if isinstance(node.value, dict):
        return node
    if isinstance(node.value, list):
        items = node.value
    else:
        items = [replace(node, value=text) for text in _BETWEEN.split(str(node.value).strip())]
    pairs = {}
    for item in items:
        key, equals, value = str(item.value).partition("=")
        if not equals:
            diagnostics.error(item, f"{show(item)} is not of the form name=value.")
            continue
        name = key.strip()
        pairs[name] = _value(value.strip(), replace(item, path=(*item.path, name)))
    return replace(node, value=pairs)


def _value(text: str, item: ConfigNode) -> ConfigNode:
    value = _literal(text)
    if isinstance(value, list):
        value = [replace(item, value=part, text=str(part)) for part in value]
    return replace(item, value=value, text=text)


def _literal(text: str) -> Any:
    """A number or a list of texts where the text spells one, else the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    try:
        value = ast.literal_eval(text) if text.startswith("[") else text
    except (SyntaxError, ValueError):
        return text
    return value if isinstance(value, str) or all(isinstance(part, str) for part in value) else text


def merged(given: ConfigNode | None, more: ConfigNode, diagnostics: Diagnostics) -> ConfigNode:
    """One mapping of two; a name that both have with unlike values is an error."""
    if given is None or not isinstance(given.value, dict):
        return given or more
    both = {key: merge_aliases(given.value.get(key), child, diagnostics) for key, child in more.value.items()}
    return replace(given, value={**given.value, **both})
