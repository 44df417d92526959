"""TOML as `ConfigNode`s, with the place of every value.

tomllib parses the text but reports no places. So each statement is looked up: from a
line that begins with a key, to the first line with which tomllib reads the lines alone.
Errors of tomllib become messages with a remedy.

`loader.py` calls `read_toml` for files that end in .toml, and so does the part that
reads datasets of other programs. Jobs of this program are YAML, never TOML.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from toolkit.config.reading.located import (
    ConfigNode,
    Diagnostics,
    KeyPath,
    SourceLocation,
)
from toolkit.config.reading.yaml_reader import MAX_DEPTH, MOST_DIGITS

_KEY = r"(?:[\w-]+|\"[^\"]*\"|'[^']*')"
_HEAD = re.compile(rf"\s*(\[\[?)\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*\]")
_STATEMENT = re.compile(rf"\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*=\s*")
_LONG = re.compile(rf"(?:^|[\[{{,])\s*(?:{_KEY}\s*\.\s*){{{MAX_DEPTH}}}", re.MULTILINE)
"""A key of more parts than values may be nested: tomllib takes a time that grows with
their square."""

_AT = re.compile(r"\s*\((?:at line (\d+), column (\d+)|at end of document)\)")

_REMEDIES = (
    (
        r"Unescaped|escape|hex",
        r"'\' begins an escape within double quotes. Write '/', or use single quotes.",
    ),
    (r"Expected '='", "no '=' follows the key. Write 'key = value'."),
    (
        r"Invalid value$",
        "this value is none of TOML. Texts need quotes, true and false small letters.",
    ),
    (r"Cannot overwrite|twice", "this key is given twice. Remove one of them."),
    (
        r"Expected newline",
        "more follows the value on this line. A list needs brackets: [1, 2].",
    ),
    (r"Unclosed|Expected .*[\]}]", "a bracket is not closed, or ',' is missing in it."),
    (
        r"Illegal character '\\n'|Expected \"|Unterminated",
        "the quote that opens here is not closed.",
    ),
)
"""Pattern of what tomllib says -> what to write instead."""

Places = dict[KeyPath, tuple[SourceLocation, SourceLocation]]
"""Path -> where the key and its value stand."""


def read_toml(text: str, diagnostics: Diagnostics, file: str = "") -> ConfigNode | None:
    """The root of a file; None, with an error at line and column, where it is not valid
    TOML.

    file: its name, where it is not the config itself.
    """
    faults = list(_faults(text))
    if faults and _is_yaml(text):
        kind = "JSON" if text.lstrip()[:1] in "{[" else "YAML"
        faults = [
            (
                1,
                1,
                f"holds {kind}, not TOML. Rename it, so that it ends in .{kind.lower()}.",
            )
        ]
    for line, column, message in faults:
        diagnostics.error_at(SourceLocation(line, column, file), (), message)
    if faults:
        return None
    data = tomllib.loads(text)
    if _is_deeper(data, MAX_DEPTH):
        diagnostics.error_at(SourceLocation(1, 1, file), (), DEEP)
        return None
    return _node(data, (), _places(text, file), (SourceLocation(1, 1, file),) * 2)


DEEP = f"nested deeper than {MAX_DEPTH} levels."


def _is_deeper(data: Any, levels: int) -> bool:
    """Whether values are nested deeper; looks level by level, as a file's depth may be
    anything."""
    level = [data]
    for _ in range(levels):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.values()
            elif isinstance(value, list):
                below += value
        level = below
    return any(isinstance(value, dict | list) for value in level)


def _faults(text: str) -> Iterator[tuple[int, int, str]]:
    """Line, column and message of each fault: a statement that has one is left out, and
    what follows is read again."""
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    before = 0
    match = _LONG.search(text)
    if match:
        yield text.count("\n", 0, match.end()) + 1, 1, DEEP
        return
    while True:
        try:
            tomllib.loads("\n".join([*lines, ""]))
            return
        except RecursionError:
            yield 1, 1, DEEP
            return
        except ValueError as error:
            if not isinstance(error, tomllib.TOMLDecodeError):
                digits = re.search(rf"[0-9_]{{{MOST_DIGITS},}}", text)
                line = text.count("\n", 0, digits.start()) + 1 if digits else 1
                what = (
                    f"a number has more than {MOST_DIGITS:,} digits"
                    if digits
                    else str(error)
                )
                yield line, 1, f"not valid TOML: {what}."
                return
            match = _AT.search(str(error))
            place = (int(match[1]), int(match[2])) if match and match[1] else None
            problem = _AT.sub("", str(error)) + (
                " Unclosed" if match and not place else ""
            )
        line, column = place or (len(lines) + 1, 1)
        is_open = place is None or (
            column == 1
            and problem == "Invalid value"
            and _STATEMENT.match(lines[line - 1])
        )
        above = range(before + 1, line) if is_open else ()
        starts = [
            at
            for at in above
            if _STATEMENT.match(lines[at - 1]) and _is_whole("\n".join(lines[: at - 1]))
        ]
        last = line
        if starts:  # a statement above is not closed before this line
            line, column, problem, last = starts[-1], 1, "Unclosed", line - 1
        remedy = next(
            (words for pattern, words in _REMEDIES if re.search(pattern, problem)),
            f"{problem}.",
        )
        yield line, column, f"not valid TOML: {remedy}"
        if line <= before or place is None:
            return
        lines[line - 1 : last], before = [""] * (last - line + 1), last


def _is_yaml(text: str) -> bool:
    """Whether a text that is not valid TOML is YAML, or JSON, which is YAML too."""
    try:
        return isinstance(
            yaml.safe_load(text), dict if text.lstrip()[:1] != "[" else list
        )
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ):  # such as a date that no calendar has
        return False


def _node(
    data: Any,
    path: KeyPath,
    places: Places,
    above: tuple[SourceLocation, SourceLocation],
) -> ConfigNode:
    here = places.get(path, above)
    if isinstance(data, dict):
        data = {
            key: _node(value, (*path, key), places, here) for key, value in data.items()
        }
    elif isinstance(data, list):
        data = [
            _node(value, (*path, index), places, here)
            for index, value in enumerate(data)
        ]
    elif not isinstance(data, str | int | float):
        data = str(data)  # a date
    if isinstance(data, dict | list):
        text = ""
    elif isinstance(data, bool):
        text = str(data).lower()
    else:
        text = str(data)
    return ConfigNode(data, path, *here, text=text)


def _places(text: str, file: str) -> Places:
    places: Places = {}
    table: KeyPath = ()
    count: dict[KeyPath, int] = {}
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        first = at
        at += 1
        if head := _HEAD.match(line):
            *above, newest = _keys(head[2])
            table = ()
            for part in above:  # of a list of tables the newest is meant
                table = (*table, part)
                table = (*table, count[table]) if table in count else table
            table = (*table, newest)
            if head[1] == "[[":
                places.setdefault(
                    table, (SourceLocation(at, head.start(1) + 1, file),) * 2
                )
                count[table] = count.get(table, -1) + 1
                table = (*table, count[table])
            places[table] = (SourceLocation(at, head.start(1) + 1, file),) * 2
        else:
            if statement := _STATEMENT.match(line):
                key = (*table, *_keys(statement[1]))
                places[key] = (
                    SourceLocation(at, statement.start(1) + 1, file),
                    SourceLocation(at, statement.end() + 1, file),
                )
                at = _end_of_statement(lines, first, at)
    return places


def _end_of_statement(lines: Sequence[str], first: int, at: int) -> int:
    """The line after the statement that begins in line `first`; `at`: the first
    candidate."""
    for end in range(at, len(lines)):
        if _HEAD.match(lines[end]) or _STATEMENT.match(lines[end]):
            if _is_whole("\n".join(lines[first:end])):
                return end
    return len(lines)


def _keys(dotted: str) -> KeyPath:
    return tuple(part.strip("\"'") for part in re.findall(_KEY, dotted))


def _is_whole(statement: str) -> bool:
    try:
        tomllib.loads(statement)
    except (ValueError, RecursionError):
        return False
    return True
