"""TOML as `ConfigNode`s. tomllib says nothing of places, so each statement is looked up: the lines from one that begins
with a key on, until tomllib reads them alone."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from toolkit.config.located import ConfigNode, Diagnostics, KeyPath, SourceLocation

TOML_SUFFIX = ".toml"

_KEY = r"(?:[\w-]+|\"[^\"]*\"|'[^']*')"
_HEAD = re.compile(rf"\s*(\[\[?)\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*\]")
_STATEMENT = re.compile(rf"\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*=\s*")
_AT = re.compile(r"\s*\((?:at line (\d+), column (\d+)|at end of document)\)")

_REMEDIES = (
    (r"Unescaped|escape", r"'\' begins an escape within double quotes. Write '/', or use single quotes."),
    (r"Expected '='", "no '=' follows the key. Write 'key = value'."),
    (r"Invalid value$", "this value is none of TOML. Texts need quotes, true and false small letters."),
    (r"Cannot overwrite|twice", "this key is given twice. Remove one of them."),
    (r"Unclosed|Expected .*[\]}]", "a bracket is not closed, or ',' is missing in it."),
    (r"Illegal character '\\n'|Expected \"|Unterminated", "the quote that opens here is not closed."),
)
"""Pattern of what tomllib says -> what to write instead."""

Places = dict[KeyPath, tuple[SourceLocation, SourceLocation]]
"""Path -> where the key and its value stand."""


def is_toml(path: str | Path) -> bool:
    """Whether the file is TOML by its name."""
    return Path(path).suffix.lower() == TOML_SUFFIX


def read_toml(text: str, diagnostics: Diagnostics, file: str = "") -> ConfigNode | None:
    """The root of a file; None, with an error at line and column, where it is no TOML.

    file: its name, where it is not the config itself.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _AT.search(str(error))
        line, column = (int(found[1]), int(found[2])) if found and found[1] else (text.count("\n") + 1, 1)
        said = _AT.sub("", str(error)) + (" Unclosed" if found and not found[1] else "")
        remedy = next((words for pattern, words in _REMEDIES if re.search(pattern, said)), f"{said}.")
        message = f"not valid TOML: {remedy}"
        if _is_yaml(text):
            line, column, message = 1, 1, "holds YAML, not TOML. Rename it, so that it ends in .yaml."
        diagnostics.error_at(SourceLocation(line, column, file), (), message)
        return None
    return _node(data, (), _places(text, file), (SourceLocation(1, 1, file),) * 2)


def _is_yaml(text: str) -> bool:
    try:
        return isinstance(yaml.safe_load(text), dict)
    except yaml.YAMLError:
        return False


def _node(data: Any, path: KeyPath, places: Places, above: tuple[SourceLocation, SourceLocation]) -> ConfigNode:
    here = places.get(path, above)
    if isinstance(data, dict):
        data = {key: _node(value, (*path, key), places, here) for key, value in data.items()}
    elif isinstance(data, list):
        data = [_node(value, (*path, index), places, here) for index, value in enumerate(data)]
    elif not isinstance(data, str | int | float):
        data = str(data)  # a date
    text = "" if isinstance(data, dict | list) else str(data).lower() if isinstance(data, bool) else str(data)
    return ConfigNode(data, path, *here, text=text)


def _places(text: str, file: str) -> Places:
    places: Places = {}
    table: KeyPath = ()
    count: dict[KeyPath, int] = {}
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line, first = lines[at], at
        at += 1
        if head := _HEAD.match(line):
            *above, newest = _keys(head[2])
            table = ()
            for part in above:  # of a list of tables the newest is meant
                table = (*table, part)
                table = (*table, count[table]) if table in count else table
            table = (*table, newest)
            if head[1] == "[[":
                count[table] = count.get(table, -1) + 1
                table = (*table, count[table])
            places[table] = (SourceLocation(at, head.start(1) + 1, file),) * 2
        elif statement := _STATEMENT.match(line):
            key = (*table, *_keys(statement[1]))
            places[key] = (
                SourceLocation(at, statement.start(1) + 1, file),
                SourceLocation(at, statement.end() + 1, file),
            )
            while at < len(lines) and not _is_whole("\n".join(lines[first:at])):
                at += 1
    return places


def _keys(dotted: str) -> KeyPath:
    return tuple(part.strip("\"'") for part in re.findall(_KEY, dotted))


def _is_whole(statement: str) -> bool:
    try:
        tomllib.loads(statement)
    except tomllib.TOMLDecodeError:
        return False
    return True
