"""Tools: processes that are also commands, `python run.py TOOL --flags`. One section
model makes the keys of a job and the flags of the command. Imports no torch.

A flag is a key with `-` for `_`. Its value is read as a value of a job is, and errors
name the flag.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import textwrap
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from toolkit.config.reading.base import descriptions
from toolkit.config.reading.field_types import AUTO_OR_BOOL, SWITCH
from toolkit.config.reading.foreign import foreign_keys
from toolkit.config.reading.loader import check_processes, read_process
from toolkit.config.reading.located import (
    NOWHERE,
    ConfigNode,
    Diagnostics,
    KeyPath,
    SourceLocation,
)
from toolkit.config.reading.normalise import (
    Normaliser,
    is_text,
    item_annotation,
    section_model,
)
from toolkit.config.reading.process import JobConfig, JobContext, ProcessConfig
from toolkit.config.reading.removed import removed_at
from toolkit.config.reading.yaml_reader import map_paths, scalar_value
from toolkit.errors import UserError
from toolkit.files.redact import redact_text
from toolkit.files.writing import moved_examples
from toolkit.version import COMMAND


class ToolConfig(ProcessConfig):
    """The section of a process that is also a command.

    >>> class Flip(ToolConfig):
    ...     "`type: flip`: mirrors a folder of images."
    ...     positional = ("folder",)
    ...     folder: str
    >>> Flip.about()
    'Mirrors a folder of images.'
    """

    positional: ClassVar[tuple[str, ...]] = ()
    """Fields that the command takes without a flag too, in order. Only the last may be
    a list."""

    flags: ClassVar[Mapping[str, str]] = {}
    """Field -> its flag where that is not the field's name."""

    verbatim: ClassVar[tuple[str, str]] = ("", "")
    """A word, and the last positional field: all that stands behind the word is that
    field's, flags too."""

    sections: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Field that is a section -> its keys that have flags, dotted where they are
    deeper. The first has the flag of the section itself: `--model M --qtype int4` is
    `model: {name_or_path: M, qtype: int4}`."""

    example: ClassVar[str] = ""
    """Words behind the command of the example in its help, as they are typed in a
    shell. They work on what the quickstart leaves in output/."""

    @classmethod
    def about(cls) -> str:
        """What the tool does: the description of the section as a sentence, without the
        words before the colon."""
        text = re.sub(r"^`[^`]*`: ", "", " ".join((cls.__doc__ or "").split()))
        return text[:1].upper() + text[1:]


def accept(
    parser: argparse.ArgumentParser, action: argparse.Action, *spellings: str
) -> None:
    """Takes further spellings of a flag, which the help does not show."""
    for spelling in spellings:
        parser._option_string_actions.setdefault(spelling, action)


class FlagParser(argparse.ArgumentParser):
    """Raises UserError for wrong arguments, with the nearest known flag.

    Example::

        parser = tool_parser("inspect", InspectConfig)
        known, unknown = parser.parse_known_intermixed_args(["my_char.safetensors"])
    """

    def error(self, message: str) -> Any:
        """argparse's own message, as an error of the user."""
        usage = " ".join((self.usage or "").split())
        raise UserError(
            f"{self.prog}: {message}. Usage: {usage}. '{self.prog} --help' shows what it takes."
        )


_FIRST_WORDS = re.compile(r"[.;:]\s")
"""Ends the part of a description that a short help has."""

_COLUMNS = 100
"""Width of the help where the terminal is wider: longer lines are hard to read."""

_OF_THE_MACHINE = ("device", "dtype", "quantize")
"""Keys of tools that the help lists with the keys of the model."""

_GROUPS = {"model": "model, memory and device", "compile": "compilation"}
"""Section of a tool -> the heading over its flags, which stand behind the tool's
own."""


def tool_parser(
    uid: str,
    model: type[ToolConfig],
    as_flags: Collection[str] = (),
    command: str = "",
    is_brief: bool = False,
) -> FlagParser:
    """The flags of a tool, with the fields' descriptions as help: its own first.
    as_flags: positional fields that have flags. command: how this program is started,
    for the example. is_brief: the help is of the tool's own flags, each with the first
    words of its description."""
    example = f"Example, once the quickstart has run:\n  {command} {uid} {model.example}".rstrip()
    parser = FlagParser(
        prog=f"{COMMAND} {uid}",
        usage=" ".join(
            [f"{COMMAND} {uid} [options]", *map(str.upper, model.positional)]
        ),
        description="\n\n".join(
            [_wrapped(model.about()), *([example] if command and model.example else [])]
        ),
        epilog=_epilog(uid, model),
        allow_abbrev=False,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=_columns()),
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    shown_elsewhere = (*model.positional, "type", "name")
    keys = [key for key in model.model_fields if key not in shown_elsewhere]
    for name in (
        *model.positional,
        *sorted(keys, key=lambda key: _group(model, key) is not None),
    ):
        paths = (
            [f"{name}.{key}" for key in model.sections[name]]
            if name in model.sections
            else [name]
        )
        for dotted in paths:
            field, about_it = field_at(model, dotted)
            if is_brief:
                about_it = _FIRST_WORDS.split(about_it)[0]
            title = _group(model, dotted)
            group: argparse._ActionsContainer = parser
            if title and title not in groups:
                groups[title] = parser.add_argument_group(title)
            if title:
                group = groups[title]
            _add(
                parser,
                group,
                model,
                dotted,
                field,
                about_it.replace("%", "%%"),
                name not in as_flags,
            )
    for group in groups.values() if is_brief else ():
        for action in group._group_actions:
            action.help = argparse.SUPPRESS
    if is_brief:
        parser.epilog = f"{parser.epilog}\nAll of the help: {parser.prog} --help"
    return parser


def _columns() -> int:
    return min(shutil.get_terminal_size().columns - 2, _COLUMNS)


def _wrapped(text: str) -> str:
    return textwrap.fill(
        text, _columns(), break_on_hyphens=False, break_long_words=False
    )


def _epilog(uid: str, model: type[ToolConfig]) -> str:
    """The last lines of the help: other ways to call the tool, and its
    documentation."""
    places = [flag_of(model, key) for key in model.positional]
    lines = (
        [f"Also as {'a flag' if len(places) == 1 else 'flags'}: {', '.join(places)}."]
        if places
        else []
    )
    lines.append(
        f"In a job: 'type: {uid}', with the same keys. All keys: docs/config.md"
    )
    return "\n".join(lines)


def _group(model: type[ToolConfig], dotted: str) -> str | None:
    """The heading over a flag; None: it is one of the tool's own. The name of a model
    is."""
    section, _, key = dotted.partition(".")
    if not key:
        return (
            _GROUPS["model"]
            if section in _OF_THE_MACHINE and "device" in model.model_fields
            else None
        )
    is_name = (
        is_text(field_at(model, dotted)[0].annotation)
        and key == model.sections[section][0]
    )
    return None if is_name else _GROUPS.get(section, section)


def field_at(model: type[BaseModel], dotted: str) -> tuple[FieldInfo, str]:
    """The field at a dotted path of sections, and its description; empty without one.
    Raises KeyError for a field that the model lacks."""
    key, _, below = dotted.partition(".")
    inner = section_model(model.model_fields[key].annotation) if below else None
    return (
        field_at(inner, below)
        if inner
        else (model.model_fields[key], descriptions(model).get(key, ""))
    )


def _add(
    parser: FlagParser,
    group: argparse._ActionsContainer,
    model: type[ToolConfig],
    name: str,
    field: FieldInfo,
    about: str,
    by_place: bool,
) -> None:
    """One flag, in a group of the help; by_place: without a flag, where the field is
    positional."""
    many = item_annotation(field.annotation) is not Any
    last = name.rpartition(".")[2]
    if by_place and name in model.positional:
        if field.is_required():
            nargs = "+" if many else None
        else:
            nargs = "*" if many else "?"
        parser.add_argument(
            name, nargs=nargs, default=None, help=about, metavar=name.upper()
        )
        return
    default = (
        " ".join(map(str, field.default))
        if isinstance(field.default, tuple)
        else field.default
    )
    shown = (
        ""
        if field.is_required() or default in (None, "", [])
        else f" (default: {default})"
    )
    options: dict[str, Any] = {"metavar": last.upper()}
    if field.annotation in (bool, AUTO_OR_BOOL):
        options = {"nargs": "?", "const": "true", "metavar": _OF_A_SWITCH}
    elif many:
        options |= {"nargs": "+", "action": "extend"}
    else:
        # of a section it may come from elsewhere
        options["required"] = field.is_required() and "." not in name
    shown = " (required)" if options.get("required") else shown
    flag = flag_of(model, name)
    action = group.add_argument(
        flag, dest=name, default=None, help=about + shown, **options
    )
    accept(
        parser,
        action,
        f"--{flag[2:].replace('-', '_')}",
        *([] if "." in name else [f"--{name}"]),
    )


def flag_of(model: type[ToolConfig], key: str) -> str:
    """The flag for a key of a tool: `sigma_rel` -> `--sigma-rel`, `model.qtype` ->
    `--qtype`. `model.flags` overrides it."""
    section, _, below = key.partition(".")
    last = (
        section
        if below == model.sections.get(section, ("",))[0]
        else key.rpartition(".")[2]
    )
    return model.flags.get(key, f"--{last.replace('_', '-')}")


class FlagDiagnostics(Diagnostics):
    """Names keys that are not given by their flags too.

    Example::

        diagnostics = FlagDiagnostics("run.py inspect", InspectConfig)
        diagnostics.error(root, "is required.", path=("file",))
    """

    def __init__(self, file: str, model: type[ToolConfig]) -> None:
        super().__init__(file)
        self._model = model

    def _place(self, env: SourceLocation, path: KeyPath) -> str:
        if (
            path
            and path[0] in self._model.model_fields
            and path[0] not in self._model.positional
        ):
            path = (flag_of(self._model, str(path[0])), *path[1:])
        firsts = {
            flag_of(self._model, f"{key}.{keys[0]}"): keys[0]
            for key, keys in self._model.sections.items()
        }
        if len(path) > 1 and path[1] == firsts.get(str(path[0])):
            # the flag of a section is that of its first key
            path = (
                path[0],
                *path[2:],
            )
        return super()._place(env, path)


def load_tool(uid: str, model: type[ToolConfig], argv: Sequence[str]) -> JobConfig:
    """The job of one process that a command asks for, checked. Raises UserError for
    wrong flags, ConfigErrors with all errors in their values."""
    word, taker = model.verbatim
    end = argv.index(word) + 1 if word and word in argv else len(argv)
    argv, behind = (
        [foreign_keys().own_flag(word, model.model_fields) for word in argv[:end]],
        list(argv[end:]),
    )
    flags = {word.partition("=")[0].replace("_", "-") for word in argv}
    parser = tool_parser(
        uid, model, [key for key in model.positional if flag_of(model, key) in flags]
    )
    for flag in sorted(flags):
        if gone := removed_at(f"{uid}.{flag.lstrip('-').replace('-', '_')}"):
            raise UserError(f"{parser.prog}: {flag!r} {gone}")
    for flag in flags & {f"--{word}" for word in model.common_words}:
        raise UserError(
            f"{parser.prog}: unknown argument {flag!r}. {model.common_words[flag[2:]]}"
        )
    # a switch takes the word behind it only where that is the value of one
    argv = [
        f"{word}=true" if _is_alone(parser, word, behind_it) else word
        for word, behind_it in pairwise([*argv, ""])
    ]
    known, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        raise UserError(unknown_arguments(parser, unknown, model.lone_key))
    given = {
        key: value for key, value in vars(known).items() if value not in (None, [])
    }
    given |= {taker: behind} if behind else {}
    diagnostics = FlagDiagnostics(parser.prog, model)
    root = map_paths(_root(uid, model, given), moved_examples())
    process = read_process(0, root, lambda _: model, Normaliser(diagnostics))
    check_processes([process], JobContext(uid), diagnostics)
    diagnostics.raise_errors()
    assert process is not None  # its type is known
    text = json.dumps(
        {"job": "extension", "config": {"name": uid, "process": [process.entry.raw]}},
        indent=2,
    )
    return JobConfig(
        "extension",
        uid,
        {},
        (process.entry,),
        diagnostics.warnings,
        Path(uid),
        redact_text(text),
    )


_OF_A_SWITCH = "true|false"
"""What the help shows behind the flag of a switch."""


def _is_alone(parser: FlagParser, word: str, behind_it: str) -> bool:
    """Whether a word is a switch, and the next word is not its value."""
    action = parser._option_string_actions.get(word)
    is_switch = action is not None and action.metavar == _OF_A_SWITCH
    return is_switch and behind_it.lower() not in (*SWITCH, "auto")


OF_JOBS = (
    "--dry-run",
    "--restart",
    "--restart-from",
    "--allow-change",
    "--recover",
    "--set",
    "--sweep",
    "--seeds",
)
"""Options of the command line that runs jobs; tools have none of them."""


def unknown_arguments(
    parser: argparse.ArgumentParser, unknown: Sequence[str], lone_key: str = ""
) -> str:
    """One line for each flag that a tool does not have; values that stand behind one
    are not told apart from it. lone_key: the key that a value without a flag is meant
    for."""
    known = [
        flag[2:]
        for flag in parser._option_string_actions
        if flag.startswith("--") and "_" not in flag
    ]
    flags = [word for word in unknown if word.startswith("-")] or list(unknown[:1])
    # Without quotation marks, a sentence is as many words.
    texts = unknown if any(" " in word for word in unknown) else [" ".join(unknown)]
    files = [word for word in unknown if re.match(r"[^-].*\.safetensors\b", word)]
    if files and "lora" in known:
        lone_key, texts = "lora", files
    lines = []
    for word in dict.fromkeys(flags):
        near = get_close_matches(
            word.partition("=")[0].lstrip("-").replace("_", "-"), known, n=1, cutoff=0.7
        )
        hint = (
            f"Did you mean '--{near[0]}'?"
            if near
            else f"'{parser.prog} --help' lists its flags."
        )
        if not word.startswith("-"):
            hint = (
                f"Write: --{lone_key} {shlex.join(texts)}"
                if lone_key
                else f"Each value stands behind its flag, one with spaces in quotes: {hint}"
            )
        if not near and word.partition("=")[0].replace("_", "-") in OF_JOBS:
            hint = "It is an option for jobs: a tool does what it does at once."
        theirs = foreign_keys().flag_remedy(word)
        if theirs and {*re.findall(r"--([\w-]+)", theirs)} <= {*known}:
            hint = theirs
        lines.append(f"{parser.prog}: unknown argument {word!r}. {hint}")
    return "\n".join(lines)


def _root(uid: str, model: type[ToolConfig], given: Mapping[str, Any]) -> ConfigNode:
    """The section as the nodes of a config file, each with its flag as its place."""
    entries = {"type": _scalar(uid, "type", text_only=True)}
    for key, value in given.items():
        place = key if key in model.positional else flag_of(model, key)
        annotation = field_at(model, key)[0].annotation
        if isinstance(value, list):
            children = [
                _scalar(text, place, is_text(item_annotation(annotation)))
                for text in value
            ]
            node = ConfigNode(children, (place,), NOWHERE, NOWHERE)
        else:
            node = _scalar(value, place, is_text(annotation))
        *above, last = key.split(".")
        section = entries
        for depth, part in enumerate(above):
            at = (
                flag_of(model, f"{part}.{model.sections[part][0]}")
                if depth == 0
                else part
            )
            section = section.setdefault(
                part, ConfigNode({}, (at,), NOWHERE, NOWHERE)
            ).value
        section[last] = node
    return ConfigNode(entries, (), NOWHERE, NOWHERE)


def _scalar(text: str, place: str, text_only: bool) -> ConfigNode:
    """text_only: the key takes text, whatever it looks like (`--prompt 7`)."""
    value = text if text_only else scalar_value(text)
    return ConfigNode(value, (place,), NOWHERE, NOWHERE, text=text, plain=True)
