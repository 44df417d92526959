"""A command that starts a training of musubi-tuner -> the keys of a training config, which `extensions.compat.musubi`
reads. Lines may be continued as in a POSIX shell (`\\`), PowerShell (`` ` ``) and cmd (`^`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from extensions.compat.musubi import FULL, LORA, ROWS, SCRIPT, flat
from extensions.compat.names import NAMES
from toolkit.config.located import ConfigNode, Diagnostics, SourceLocation, odd_characters, show
from toolkit.config.toml_reader import TOML_SUFFIX, read_toml
from toolkit.config.yaml_reader import read_text, scalar_kind, scalar_value
from toolkit.errors import ConfigErrors, did_you_mean

TRAINS = {FULL: "the model itself", LORA: "an adapter"}
"""Script -> what it trains."""

NOT_NEEDED = {
    "qwen_image_cache_latents.py": "images and captions are encoded before the training, by the training itself",
    "qwen_image_cache_text_encoder_outputs.py": "captions are encoded before the training, by the training itself",
}
"""Script -> why there is no such command here."""

MANY = frozenset({"optimizer_args", "lr_scheduler_args", "network_args", "base_weights", "base_weights_multiplier"})
"""Flags that take several values."""

TEXTS = frozenset({"output_name", "training_comment", "wandb_run_name", "log_prefix", "log_tracker_name"})
"""Options that are text, whatever they look like; the `metadata_` ones too."""

_GOES_ON = re.compile(r"[ \t]*(?:\\|\^|`)[ \t]*\r?\n")
_WORD = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|\\[ "'$\\]|[^\s"'])+""")
_WINDOWS = re.compile(r"[\"']?[A-Za-z]:\\")
_VARIABLE = re.compile(r"\$([A-Za-z_]\w*)")


class _Word(NamedTuple):
    text: str
    at: SourceLocation


def read_command(text: str, diagnostics: Diagnostics) -> ConfigNode:
    """The root of a training config. Raises ConfigErrors where no command in the text trains.

    text: one or several commands; those that encode beforehand are left out, with a warning.
    """
    training: list[tuple[_Word, list[_Word]]] = []
    strange: list[_Word] = []
    for words in commands(text):
        script, before, flags = parted(words)
        if script is None:
            continue  # cd, source, set
        if script.text in TRAINS:
            training.append((script, [*before, *flags]))
        elif reason := NOT_NEEDED.get(script.text):
            diagnostics.warn(_node(script.text, script), f"is left out: {reason}.")
        else:
            strange.append(script)
    if len(training) != 1:
        found = training[1][0] if training else strange[0] if strange else _Word("", SourceLocation(1, 1))
        what = "is a second training: give one command" if training else f"{found.text!r} trains no Qwen-Image model"
        diagnostics.fatal(found.at, (), f"{what}. Commands of {' and '.join(TRAINS)} are read.")
    script, words = training[0]
    given = _flags(words, diagnostics)
    entries = _with_file(given, diagnostics)
    return ConfigNode({SCRIPT: _node(script.text, script), **entries}, (), script.at, script.at)


def commands(text: str) -> Iterator[list[_Word]]:
    """The words of each command; a continued line keeps its places."""
    flat_text = _GOES_ON.sub(lambda found: " " * len(found.group()), text)
    start = 0
    for line in flat_text.splitlines(keepends=True):
        words: list[_Word] = []
        for found in _WORD.finditer(line):
            if found.group()[0] == "#":
                break
            if found.group() in ("&&", ";", "|", "||"):
                yield words
                words = []
            else:
                words.append(_Word(_unquoted(found.group()), _place(text, start + found.start())))
        yield words
        start += len(line)


def _place(text: str, index: int) -> SourceLocation:
    before = text[:index]
    return SourceLocation(before.count("\n") + 1, index - before.rfind("\n"))


def _unquoted(word: str) -> str:
    """A word as the program gets it; `$NAME` as the config writes variables."""
    if _WINDOWS.match(word):
        return word.replace('"', "").replace("'", "")
    parts = []
    for part in re.findall(r"""'[^']*'|"(?:\\.|[^"\\])*"|[^'"]+""", word):
        if part[0] == "'":
            parts.append(part[1:-1])
        else:
            inside = part[1:-1] if part[0] == '"' else part
            parts.append(_VARIABLE.sub(r"${\1}", re.sub(r"\\([ \"'$\\])", r"\1", inside)))
    return "".join(parts)


def parted(words: Sequence[_Word]) -> tuple[_Word | None, list[_Word], list[_Word]]:
    """The name of the script, what `accelerate` is told that the script would have to know, and its flags."""
    for index, word in enumerate(words):
        name = re.split(r"[/\\]", word.text)[-1]
        if index and words[index - 1].text == "-m" and "." in word.text:
            name = f"{word.text.rpartition('.')[2]}.py"
        if name.endswith(".py"):
            flags = list(words[index + 1 :])
            keys = [flag.text.partition("=")[0] for flag in flags]
            before = [
                each
                for at, each in enumerate(words[:index])
                if "--mixed_precision" not in keys
                and (each.text.startswith("--mixed_precision") or (at and words[at - 1].text == "--mixed_precision"))
            ]
            return word._replace(text=name), before, flags
    return None, [], []


def _flags(words: Sequence[_Word], diagnostics: Diagnostics) -> dict[str, ConfigNode]:
    """Option -> its value: true for a switch."""
    given: dict[str, ConfigNode] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.text.startswith("--"):
            message = f"{word.text!r} belongs to no flag. {odd_characters(word.text)}".rstrip()
            diagnostics.error_at(word.at, (), message)
            continue
        name, equals, value = word.text[2:].partition("=")
        values = [word._replace(text=value)] if equals else []
        while waiting and not waiting[0].text.startswith("--") and (name in MANY or not values):
            values.append(waiting.pop(0))
        if name not in ROWS:
            tools = "It is a flag of another script." if name in NAMES["musubi", "flags"] else ""
            hint = odd_characters(name) or tools or did_you_mean(name, ROWS, list_all=False)
            diagnostics.error(_node(name, word, name), f"--{name}: unknown flag. {hint}", at_key=True)
            continue
        nodes = [_node(each.text, each, name) for each in values]
        node = replace(_node("true", word, name), value=True)
        if name in MANY:
            node = replace(node, value=nodes)
        elif nodes:
            node = replace(nodes[0], key_at=word.at)
        _add(given, name, node, diagnostics)
    return given


def _with_file(given: dict[str, ConfigNode], diagnostics: Diagnostics) -> dict[str, ConfigNode]:
    """The flags and what the file of `--config_file` says; an option of both with unlike values is an error."""
    node = given.pop("config_file", None)
    if node is None:
        return given
    path = Path(str(node.value)).expanduser()
    path = path if path.suffix else path.with_suffix(TOML_SUFFIX)  # as there
    found, root = Diagnostics(str(path)), None
    with suppress(ConfigErrors):  # which are in `found`
        root = read_toml(read_text(path, found), found, str(path))
    diagnostics.include(found)
    for name, of_file in flat(root).items() if root else ():
        _add(given, name, of_file, diagnostics)
    return given


def _add(given: dict[str, ConfigNode], name: str, node: ConfigNode, diagnostics: Diagnostics) -> None:
    first = given.setdefault(name, node)
    if first.data() != node.data():
        at = node.key_at
        place = f"{at.file} line {at.line}" if at.file else "a second time"
        message = f"--{name} is {_shown(first)}, and {_shown(node)} {'in ' * bool(at.file)}{place}. Remove one of them."
        diagnostics.error(first, message, at_key=True)


def _shown(node: ConfigNode) -> str:
    return " ".join(str(each.value) for each in node.value) if isinstance(node.value, list) else show(node)


def _node(text: str, word: _Word, name: str = SCRIPT) -> ConfigNode:
    is_text = name in TEXTS or name.startswith("metadata_") or scalar_kind(text) not in ("int", "float")
    return ConfigNode(text if is_text else scalar_value(text), (name,), word.at, word.at, text, plain=True)
