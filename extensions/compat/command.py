"""A training command of musubi-tuner -> its flags as the keys of a config, which its
reader takes. Lines may be continued as in a POSIX shell (`\\`), PowerShell (`` ` ``)
and cmd (`^`).

Only the words are read here: the values are checked by `musubi`, as if they were in a
file. The core finds the reader through `toolkit.registry`, and `musubi_tools` uses it
for the other scripts.
"""

from __future__ import annotations

import os
import re
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from extensions.compat import not_read
from extensions.compat.foreign_jobs import SCRIPT
from extensions.compat.musubi import FULL, LORA, flat
from extensions.compat.musubi import TEXTS as OF_TEXT
from extensions.compat.names import options, tool_flags
from extensions.compat.nodes import file_root
from toolkit.config.reading.foreign import NO_COMMAND
from toolkit.config.reading.located import (
    ConfigNode,
    Diagnostics,
    SourceLocation,
    odd_characters,
    show,
)
from toolkit.config.reading.yaml_reader import scalar_kind, scalar_value
from toolkit.errors import did_you_mean

NOT_NEEDED = {
    "qwen_image_cache_latents.py": "images and captions are encoded before the training, by the training itself",
    "qwen_image_cache_text_encoder_outputs.py": "captions are encoded before the training, by the training itself",
}
"""Script -> why there is no such command here."""

MANY = frozenset(
    {
        "optimizer_args",
        "lr_scheduler_args",
        "network_args",
        "base_weights",
        "base_weights_multiplier",
    }
)
"""Flags that take several values."""

TEXTS = re.compile(
    "output_name|training_comment|wandb_run_name|log_prefix|log_tracker_name|metadata_.*"
)
"""Flags that are text, whatever they look like."""

LAUNCHERS = (
    "accelerate.commands.launch",
    "torch.distributed.run",
    "torch.distributed.launch",
)
"""Modules after `python -m` that start the script behind them."""

_GOES_ON = re.compile(r"[ \t]*(?:\\|\^|`)[ \t]*\r?\n")
_FLAG = re.compile(r"[-\u2010-\u2015\u2212]+[A-Za-z]")
"""The beginning of a flag, of one dash too, or of those that editors make of two."""


_WORD = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|\\[ "'$\\]|[^\s"']|["'][^\n]*)+""")
_QUOTED = re.compile(r"""\\["']|"(?:\\.|[^"\\])*"|'[^']*'""")
_WINDOWS = re.compile(r"[\"']?[A-Za-z]:\\")
_VARIABLE = re.compile(r"\$(?:env:)?(\w+)|\$\{(\w+)\}|%(\w+)%|\$\(\$(\w+)\)")
_OR_ELSE = re.compile(r"\$\{(\w+):?[-=]((?:[^{}]|\$\{\w+\})*)\}")
"""A variable, and its value where it has none."""

_TO_FILE = re.compile(r"[0-9&]?(?:>>?|<)\S*")
_ASSIGNED = re.compile(r"(?:\$\{)?([A-Za-z_]\w*)\}?=(.*)", re.DOTALL)
_ARGUMENTS = re.compile(r"[\"']?\$(?:@|\*|\{@\})[\"']?")
_ARRAY = re.compile(r"([A-Za-z_]\w*)\+?=\((.*)")
_OF_ARRAY = re.compile(r"[\"']?\$\{(\w+)\[[@*]\]\}[\"']?")
_ALONE = re.compile(rf"\$(?:\{{\w+\}}|\w+)|{_OR_ELSE.pattern}")
_UNKNOWN = re.compile(r"\$\{\w+\}")
_OPENS = frozenset({"if", "for", "while", "until", "case"})
_CLOSES = frozenset({"fi", "done", "esac"})


class _Word(NamedTuple):
    text: str
    at: SourceLocation
    is_open: bool = False
    """A quote in it is not closed on its line."""


def read_command(text: str, diagnostics: Diagnostics) -> ConfigNode:
    """The root of a training config. Raises ConfigErrors where no command trains.

    text: one or several commands; those that encode beforehand are left out, with a
    warning.
    """
    not_read.refuse_variables(text, diagnostics)
    training: list[tuple[_Word, list[_Word]]] = []
    strange: list[_Word] = []
    for at, what in stray_flags(text):
        diagnostics.error_at(at, (), what)
    diagnostics.raise_errors()  # what is missing above is a consequence
    for words in commands(text):
        script, before, flags = parted(words)
        if script is None:
            continue  # cd, source, set
        not_read.refuse_script(
            script.text, script.at, [flag.text for flag in flags], diagnostics
        )
        if script.text in (FULL, LORA):
            for word in words:
                if word.is_open:
                    diagnostics.error_at(
                        word.at,
                        (),
                        "a quote that opens here is not closed on its line.",
                    )
            training.append((script, [*before, *flags]))
        elif script.text in NOT_NEEDED:
            diagnostics.warn(
                _node(script.text, script), f"is left out: {NOT_NEEDED[script.text]}."
            )
        else:
            strange.append(script)
    if training:
        for script in strange:
            diagnostics.warn(
                _node(script.text, script),
                "is left out: a file is one job, and this trains none.",
            )
    roots = [_root(script, words, diagnostics) for script, words in training]
    are_read = f"Commands of {FULL} and {LORA} are read."
    if not training and not strange:
        diagnostics.fatal(SourceLocation(1, 1), (), NO_COMMAND)
    if not training:
        script = strange[0]
        diagnostics.fatal(
            script.at, (), f"{script.text!r} trains no Qwen-Image model. {are_read}"
        )
    if len(training) > 1:
        second, _ = training[1]
        diagnostics.fatal(
            second.at, (), f"is a second training: give one command. {are_read}"
        )
    return roots[0]


def _root(
    script: _Word, words: Sequence[_Word], diagnostics: Diagnostics
) -> ConfigNode:
    entries = _with_file(_flags(words, diagnostics), diagnostics)
    return ConfigNode(
        {SCRIPT: _node(script.text, script), **entries}, (), script.at, script.at
    )


def commands(text: str) -> Iterator[list[_Word]]:
    """The words of each command; a continued line keeps its places. Variables that are
    assigned above have their values, unless what runs decides them."""
    flat_text = _GOES_ON.sub(
        lambda match: " " * len(match.group()), _without_comments(text)
    )
    known = _Variables()
    # of the lines, continued or not
    starts = [
        0,
        *accumulate(len(line) + 1 for line in text.split("\n")),
    ]
    start = 0
    for line in flat_text.splitlines(keepends=True):
        words: list[_Word] = []
        waits = False  # for the file that output goes to
        for match in _WORD.finditer(line):
            raw = match.group()
            index = start + match.start()
            number = bisect(starts, index)
            place = SourceLocation(number, index - starts[number - 1] + 1)
            if raw[0] == "#":
                break
            is_last = len(raw) > 1 and raw[-1] == ";" and raw[-2] != "\\"
            if is_last:
                raw = raw.removesuffix(";")
            has_open_quote = re.search("[\"']", _QUOTED.sub("", raw)) is not None
            is_open = has_open_quote and not _WINDOWS.match(raw)
            to_file = _TO_FILE.fullmatch(raw) is not None
            is_name_missing = raw[-1] in "<>"
            if raw in ("&&", ";", "|", "||", "&"):
                yield known.after_assignments(words)
                words = []
            elif not (to_file or waits):
                for word in known.words(raw, place):
                    words.append(word._replace(is_open=is_open))
            waits = to_file and is_name_missing
            if is_last:
                yield known.after_assignments(words)
                words = []
        yield known.after_assignments(words)
        start += len(line)


def _without_comments(text: str) -> str:
    """A text of the same length with spaces for comments, which go on to the end of
    their own line whatever it is; a comment behind the mark that continues a line is
    let be, as guides have it."""
    lines = []
    for line in text.splitlines(keepends=True):
        begin = next(
            (word.start() for word in _WORD.finditer(line) if word.group()[0] == "#"),
            None,
        )
        if begin is None:
            lines.append(line)
            continue
        text_end = len(line.rstrip("\r\n"))
        lines.append(line[:begin] + " " * (text_end - begin) + line[text_end:])
    return "".join(lines)


def stray_flags(text: str) -> Iterator[tuple[SourceLocation, str]]:
    """Places where a command begins with a flag, or has flags and no script below one
    that has one, and why: it is the end of the command above, which does not go on."""
    lines = text.splitlines()
    continuation = _GOES_ON.search(text)
    mark = continuation.group().strip() if continuation else "\\"
    is_above = False
    for words in commands(text):
        first = words[0] if words else None
        was_above = is_above
        is_above = first is not None and parted(words)[0] is not None
        flags = {
            word.text[2:].partition("=")[0]
            for word in words
            if word.text.startswith("--")
        }
        is_end = was_above and not is_above and not flags.isdisjoint(options())
        if first is None or not (is_end or _FLAG.match(first.text)):
            continue
        above = lines[first.at.line - 2].strip() if first.at.line > 1 else ""
        if not above or above.startswith("#"):
            what = f"line {first.at.line - 1} is {'a comment' if above else 'empty'}, which ends it. Remove that line."
        else:
            what = f"the mark that continues it ({mark}) is missing at the end of line {first.at.line - 1}."
        yield (
            first.at,
            f"{first.text.partition('=')[0]!r} belongs to the command above: {what}",
        )


class _Variables:
    """What the lines above have assigned."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.arrays: dict[str, list[_Word]] = {}
        self.filling = ""
        """The array whose lines are being read."""

        self.depth = 0
        """Number of `if`, loops and cases around a line."""

    def words(self, raw: str, place: SourceLocation) -> list[_Word]:
        """A word as the program gets it: none of what is empty, several of a variable
        that holds several."""
        array_begins = _ARRAY.fullmatch(raw)
        if array_begins and not self.filling:
            self.filling = array_begins[1]
            self.arrays[self.filling] = []
            raw = array_begins[2]
        if self.filling:
            inside = raw.removesuffix(")")
            words = [_Word(_unquoted(inside, self.values), place)] if inside else []
            self.arrays[self.filling] += words
            if raw.endswith(")"):
                self.filling = ""
            return []
        if _ARGUMENTS.fullmatch(raw):
            return []  # what the script is given, which is nothing
        array = _OF_ARRAY.fullmatch(raw)
        if array and array[1] in self.arrays:
            return self.arrays[array[1]]
        text = _unquoted(raw, self.values)
        if not _ALONE.fullmatch(raw) or (
            _UNKNOWN.fullmatch(text) and text[2:-1] not in os.environ
        ):
            return [_Word(text, place)]
        parts = _now(text).split()
        is_value = len(parts) == 1 and not parts[0].startswith("--")
        if is_value:
            return [_Word(text, place)]
        return [_Word(part, place) for part in parts]

    def after_assignments(self, words: list[_Word]) -> list[_Word]:
        """A command; nothing of what only assigns variables, which are taken."""
        texts = [word.text for word in words]
        if texts[:1] in (["export"], ["set"], ["declare"]):
            texts = texts[1:]
        if texts[:1] == [":"]:  # ${NAME:=value}
            matches = [(_OR_ELSE.fullmatch(text), text) for text in texts]
            texts = [f"{match[1]}={text}" for match, text in matches if match]
        if texts[1:2] == ["="]:  # PowerShell
            texts = ["".join(texts)]
        assignments = [_ASSIGNED.fullmatch(text.rstrip(";")) for text in texts]
        assigned = {match[1]: match[2] for match in assignments if match}
        decides = self.depth > 0 or not _OPENS.isdisjoint(texts)
        opened = [text for text in texts if text in _OPENS]
        closed = [text for text in texts if text.rstrip(";") in _CLOSES]
        self.depth += len(opened) - len(closed)
        if decides:
            for name in assigned:
                self.values.pop(name, None)
        elif all(assignments):
            self.values |= assigned
            return []
        return words


def _unquoted(word: str, variables: Mapping[str, str]) -> str:
    """A word as the program gets it; `$NAME` that has no value in the text as the
    config writes variables."""

    def name_of(variable: re.Match[str]) -> str:
        name: str = variable[1] or variable[2] or variable[3] or variable[4]
        return name

    def value(variable: re.Match[str]) -> str:
        name = name_of(variable)
        is_no_variable = variable[3] or name[0].isdigit()
        return variables.get(name, variable[0] if is_no_variable else f"${{{name}}}")

    def or_else(variable: re.Match[str]) -> str:
        inside = _VARIABLE.sub(
            lambda inner: os.environ.get(name_of(inner), value(inner)), variable[2]
        )
        return variables.get(variable[1]) or f"${{{variable[1]}:-{inside}}}"

    if _WINDOWS.match(word):
        return word.replace('"', "").replace("'", "")
    parts = []
    for part in re.findall(r"""'[^']*'|"(?:\\.|[^"\\])*"|(?:\\.|[^'"\\])+|\\""", word):
        if part[0] == "'":
            parts.append(part[1:-1])
        else:
            inside = part[1:-1] if part[0] == '"' else part
            inside = _OR_ELSE.sub(or_else, re.sub(r"\\([ \"'$\\])", r"\1", inside))
            parts.append(_VARIABLE.sub(value, inside))
    return "".join(parts)


def _now(text: str) -> str:
    """What a variable is now, which may have a value for where it has none; other texts
    as they are."""
    if _UNKNOWN.fullmatch(text):
        return os.environ[text[2:-1]]
    variable = _OR_ELSE.fullmatch(text)
    if variable is None:
        return text
    return os.environ.get(variable[1]) or variable[2]


def parted(words: Sequence[_Word]) -> tuple[_Word | None, list[_Word], list[_Word]]:
    """The name of the script, what `accelerate` is told that the script would have to
    know, and its flags."""
    for index, word in enumerate(words):
        name = re.split(r"[/\\]", word.text)[-1]
        module = f"{word.text.rpartition('.')[2]}.py"
        is_module = (
            bool(index) and words[index - 1].text == "-m" and word.text not in LAUNCHERS
        )
        if is_module and ("." in word.text or module in (FULL, LORA)):
            name = module
        if name.endswith(".py"):
            flags = list(words[index + 1 :])
            keys = [flag.text.partition("=")[0] for flag in flags]
            before = [] if "--mixed_precision" in keys else _precision(words[:index])
            return word._replace(text=name), before, flags
    return None, [], []


def _precision(words: Sequence[_Word]) -> list[_Word]:
    """The flag in the arguments of `accelerate` that sets the number type, and its
    value."""
    flag = "--mixed_precision"
    chosen = []
    for index, word in enumerate(words):
        is_value = index > 0 and words[index - 1].text == flag
        if is_value or word.text.startswith(flag):
            chosen.append(word)
    return chosen


def _flags(words: Sequence[_Word], diagnostics: Diagnostics) -> dict[str, ConfigNode]:
    """Option -> its value: true for a switch."""
    given: dict[str, ConfigNode] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.text.startswith("--"):
            is_variable = word.text.startswith("${")
            if is_variable:
                hint = "Set the variable, or write what it stands for."
            else:
                hint = odd_characters(word.text)
            if _FLAG.match(word.text):
                hint = "A flag begins with two plain '-'."
            diagnostics.error_at(
                word.at, (), f"{word.text!r} belongs to no flag. {hint}".rstrip()
            )
            continue
        name, equals, value = word.text[2:].partition("=")
        meant = [flag for flag in options() if flag.startswith(name)]
        if len(meant) == 1:  # a beginning that no other has, as in musubi-tuner
            name = meant[0]
        values = [word._replace(text=value)] if equals else []
        while (
            waiting
            and not waiting[0].text.startswith("--")
            and (name in MANY or not values)
        ):
            values.append(waiting.pop(0))
        if name not in options():
            if name in tool_flags():
                tools = "It is a flag of another script."
            else:
                tools = ""
            hint = (
                odd_characters(name)
                or tools
                or did_you_mean(name, options(), list_all=False)
            )
            diagnostics.error(
                _node(name, word, name), f"--{name}: unknown flag. {hint}", at_key=True
            )
            continue
        if not values and (name in MANY or name in OF_TEXT):
            diagnostics.error(
                _node(name, word, name),
                f"--{name}: has no value. Write one, or leave the flag out.",
            )
            continue
        is_text = TEXTS.fullmatch(name) is not None
        nodes = [_node(argument.text, argument, name, is_text) for argument in values]
        node = replace(_node("true", word, name), value=True)
        if name in MANY:
            node = replace(node, value=nodes)
        elif nodes:
            node = replace(nodes[0], key_at=word.at)
        _add(given, name, node, diagnostics)
    return given


def with_flags(
    given: Mapping[str, ConfigNode], text: ConfigNode, diagnostics: Diagnostics
) -> dict[str, ConfigNode]:
    """Options with those of a text in which a front end keeps flags for which it has no
    field."""
    words = [
        word._replace(at=text.value_at)
        for command in commands(str(text.value))
        for word in command
    ]
    known = dict(given)
    for name, node in _flags(words, diagnostics).items():
        _add(known, name, node, diagnostics)
    return known


def _with_file(
    given: dict[str, ConfigNode], diagnostics: Diagnostics
) -> dict[str, ConfigNode]:
    """The flags and what the file of `--config_file` says; an option of both with
    unlike values is an error."""
    node = given.pop("config_file", None)
    if node is None:
        return given
    path = Path(str(node.value)).expanduser()
    if not path.suffix:
        path = path.with_suffix(".toml")  # as musubi-tuner does
    root = file_root(path, diagnostics)
    diagnostics.raise_errors()
    if root is not None:
        for name, of_file in flat(root).items():
            _add(given, name, of_file, diagnostics)
    return given


def _add(
    given: dict[str, ConfigNode], name: str, node: ConfigNode, diagnostics: Diagnostics
) -> None:
    """Adds an option; one that is given already with another value is an error with
    both."""
    first = given.setdefault(name, node)
    if first.data() != node.data():
        at = node.key_at
        place = f"in {at.file} line {at.line}" if at.file else "a second time"
        message = f"--{name} is {_shown(first)}, and {_shown(node)} {place}. Remove one of them."
        diagnostics.error(first, message, at_key=True)


def _shown(node: ConfigNode) -> str:
    if isinstance(node.value, list):
        return " ".join(str(item.value) for item in node.value)
    return show(node)


def _node(
    text: str, word: _Word, name: str = SCRIPT, is_text: bool = True
) -> ConfigNode:
    is_number = not is_text and scalar_kind(text) in ("int", "float")
    return ConfigNode(
        scalar_value(text) if is_number else text,
        (name,),
        word.at,
        word.at,
        text,
        plain=True,
    )
