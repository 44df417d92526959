"""What to write instead of a YAML text that PyYAML cannot read.

`syntax_fault` takes the error of PyYAML and returns the place of the mistake, which is
often above the place that PyYAML names, with a message and a remedy. It recognises the
usual mistakes: tabs, missing spaces, a missing dash, unquoted special characters.

`yaml_reader.py` calls it. `quoted` writes a text so that YAML reads it back as text;
messages of the other modules use it.
"""

from __future__ import annotations

import re
from contextlib import suppress
from itertools import takewhile
from typing import Literal, NamedTuple

import yaml

from toolkit.config.reading.located import KeyPath, SourceLocation


class _Remedy(NamedTuple):
    """One row of `_REMEDIES`."""

    problem: str
    """Pattern in what PyYAML says."""

    cause: Literal["here", "above", "opened", "text"]
    """Where the mistake is: where PyYAML stopped, in the line above, where it began to
    read the part it is in, or where the text of the line begins."""

    line: str
    """Pattern in that line."""

    remedy: str
    """May hold {problem}, and of the line's text the {sign} that it begins with and the
    whole, {quoted}."""


_TEXT = r"^\s*(?:- +)*(?:[\w.-]+: +)?(?P<text>\S.*?)\s*(?:\s#.*)?$"
"""A line with the text that it holds, behind a dash or a key."""

_NO_KEY_HERE = r"mapping values|'<block mapping start>'"

_REMEDIES = (
    _Remedy(r"'\\t'", "here", r"", "a tab. Indent with spaces."),
    _Remedy(
        r"",
        "here",
        r"^\s*-[A-Za-z_]\w*\s*:",
        "'-' and the key are one word. Write a space after '-'.",
    ),
    _Remedy(
        r"",
        "above",
        r"^\s*-[A-Za-z_]\w*\s*:",
        "'-' and the key are one word. Write a space after '-'.",
    ),
    _Remedy(
        r"escape",
        "here",
        r"\b[A-Za-z]:\\",
        r"'\' begins an escape within double quotes. Write '/', or use single quotes; in WSL, C:\ is '/mnt/c/'.",
    ),
    _Remedy(
        r"escape",
        "here",
        r"",
        r"'\' begins an escape within double quotes. Write '/' or '\\', or use single quotes.",
    ),
    _Remedy(
        r"end of stream", "opened", r"", "the quote that opens here is never closed."
    ),
    _Remedy(
        r"expected ',' or",
        "opened",
        r"",
        "the bracket that opens here is not closed, or ',' is missing in it.",
    ),
    _Remedy(
        r"could not find expected ':'",
        "opened",
        r"^\s*(- +)?\w+:[^\s:]",
        "no space follows the ':'. Write 'key: value'.",
    ),
    _Remedy(
        r"could not find expected ':'",
        "opened",
        r"",
        "no ':' follows the key. Write 'key: value'.",
    ),
    _Remedy(
        _NO_KEY_HERE,
        "above",
        r"^\s*(- +)?\w+( +[^\s:]+)? *(#.*)?$",
        "no ':' follows the key. Write 'key: value'.",
    ),
    _Remedy(
        _NO_KEY_HERE,
        "above",
        r"^\s*(- +)?\w+ *= *\S",
        "a key has no '='. Write 'key: value'.",
    ),
    _Remedy(
        _NO_KEY_HERE,
        "above",
        r"^\s*(- +)?\w+:[^\s:]",
        "no space follows the ':'. Write 'key: value'.",
    ),
    _Remedy(
        r"mapping values", "here", r"\S#", "a comment needs a space before its '#'."
    ),
    _Remedy(
        r"mapping values",
        "here",
        r":\s.*:(\s|$)",
        "': ' stands twice in a line. Put the text in quotes: {quoted}",
    ),
    _Remedy(
        r"expected <block end>",
        "here",
        r"(^|\s)(\[[^\]]*\]|\{[^}]*\})\s*[^\s#]",
        "a text that begins with a bracket needs quotes around the whole: {quoted}",
    ),
    _Remedy(
        r"'<scalar>'",
        "opened",
        r"[\"']",
        "the quote that opens here closes within the text. Close it at the end, or use the other kind of quote.",
    ),
    _Remedy(
        rf"{_NO_KEY_HERE}|'-'|'\?'",
        "here",
        r"",
        "the indent fits none of the lines above.",
    ),
    _Remedy(
        r"undefined alias",
        "here",
        r"",
        "{problem}: no value above is marked '&'. If '*' belongs to the text, put the text in quotes: {quoted}",
    ),
    _Remedy(
        r"",
        "text",
        r"^\s*```",
        "'```' marks code on a page, and is not part of the job. Remove this line.",
    ),
    _Remedy(
        r"",
        "text",
        r"^\s*(?:- +)*(?:[\w.-]+: +)?[&*!%@`|>][^#]",
        "a text cannot begin with '{sign}' unless it is in quotes: {quoted}",
    ),
    _Remedy(
        r"found character",
        "here",
        r"",
        "{problem}. If it begins a text, put the text in quotes.",
    ),
    _Remedy(r"", "here", r"", "{problem}"),
)
"""The first row that fits an error is reported."""


def syntax_fault(
    text: str, error: yaml.MarkedYAMLError
) -> tuple[SourceLocation, KeyPath, str]:
    """The place of the mistake, which is often above the place where PyYAML stopped,
    and what to write instead."""
    lines = text.splitlines() or [""]
    mark = error.problem_mark or error.context_mark
    here = (
        SourceLocation(mark.line + 1, mark.column + 1) if mark else SourceLocation(1, 1)
    )
    stopped = error.context_mark if "end of stream" in str(error.problem) else mark
    opened = (
        (stopped and _quote_before(text, stopped.index)) or error.context_mark or mark
    )
    above = here.line - 1
    while above > 1 and re.match(r"\s*(#|$)", lines[above - 1]):
        above -= 1
    first = re.search(r"\S", lines[above - 1]) if above else None
    places = {
        "here": here,
        "above": SourceLocation(above, first.start() + 1) if first else here,
        "opened": SourceLocation(opened.line + 1, opened.column + 1)
        if opened
        else here,
    }
    problem = "; ".join(part for part in (error.problem, error.note) if part)
    if "another document" in problem:
        return here, (), _second_document(lines[here.line :])
    written = re.match(_TEXT, lines[here.line - 1] if here.line <= len(lines) else "")
    places["text"] = (
        here._replace(column=written.start("text") + 1) if written else here
    )
    whole = written["text"] if written else ""
    words = {"problem": problem, "sign": whole[:1], "quoted": quoted(whole)}
    for place in (places["above"], places["here"]):
        if _lacks_dash(lines, place):
            return (
                place,
                (),
                "not valid YAML: '- ' is missing in front of this item of a list, "
                "or spaces where it belongs to the item above.",
            )
    for row in _REMEDIES:
        place = places[row.cause]
        line = lines[place.line - 1] if place.line <= len(lines) else ""
        if re.search(row.problem, problem) and re.search(row.line, line):
            return place, (), f"not valid YAML: {row.remedy.format(**words)}"
    raise AssertionError("the last row fits everything")


def _second_document(below: list[str]) -> str:
    """below: the lines behind the '---'."""
    if any(re.match(r"\s*[^\s#]", line) for line in below):
        return "'---' begins a second document. Write one job per file; run.py runs several files one after another."
    return "'---' begins a second document, which is empty. Remove it."


def quoted(text: str) -> str:
    """A text in quotes that YAML reads back as the same text. Single quotes are used
    where it holds double quotes or backslashes.

    >>> print(quoted("a: b"), quoted('5" x 7"'))
    "a: b" '5" x 7"'
    """
    return (
        "'" + text.replace("'", "''") + "'" if set(text) & set('"\\') else f'"{text}"'
    )


def _lacks_dash(lines: list[str], place: SourceLocation) -> bool:
    """Whether the line is a key next to a line of the same indent that begins with a
    dash."""
    indents = [
        re.match(f" {{{place.column - 1}}}- ", line)
        for line in lines[place.line - 2 : place.line + 1]
    ]
    is_key = any(
        re.match(r" *\w+:(\s|$)", line) for line in lines[place.line - 1 : place.line]
    )
    return is_key and place.column > 1 and any(indents)


def _quote_before(text: str, end: int) -> yaml.Mark | None:
    """The start of the quoted text that ends right before `end`, where more text or
    another quote follows."""
    last: yaml.Token | None = None
    with suppress(yaml.YAMLError):  # PyYAML stopped within the token behind it
        for token in takewhile(
            lambda token: token.start_mark.index < end,
            yaml.scan(text, Loader=yaml.SafeLoader),
        ):
            last = token
    quoted = isinstance(last, yaml.ScalarToken) and last.style in ("'", '"')
    return (
        last.start_mark
        if last and quoted and not text[last.end_mark.index : end].strip()
        else None
    )
