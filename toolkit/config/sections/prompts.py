"""The prompts of a section of samples: a list, or a text file with one prompt per line;
and the flags in one of them: `a cat --w 512 --n blurry, dark`.

A flag is ` --<known name>` between spaces; it stands behind the prompt's text, and its
value reaches to the next flag. Everything else with two dashes is text. The names are
those of musubi-tuner (hv_train_network.py, `line_to_prompt_dict`) and of ai-toolkit
(config_modules.py, `GenerateImageConfig`)."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.config.reading.field_types import slot_names
from toolkit.config.reading.located import ConfigNode, Diagnostics, show
from toolkit.config.reading.normalise import merge_aliases
from toolkit.files.unreadable import in_its_place
from toolkit.files.writing import read_source

_FILE = re.compile(r"\S+\.(?:txt|json|toml)", re.IGNORECASE)


def prompts_to_samples(
    entries: dict[str, ConfigNode], diagnostics: Diagnostics
) -> None:
    """`prompts` become `samples`, and so does a text among `samples`."""
    given = [entries.pop("prompts")] if "prompts" in entries else []
    if "samples" in entries and entries["samples"].data() != []:
        given.append(entries["samples"])
    if len(given) > 1:
        name, remedy = str(given[1].path[-1]), "Remove one of them."
        flag, key = given[0].flag
        if flag and isinstance(given[0].value, list):
            texts = json.dumps(given[0].data(), ensure_ascii=False)
            meant = f"{key.removesuffix('prompts')}{name}={texts}"
            remedy = f"Write: {flag} {shlex.quote(meant)}"
        diagnostics.error(given[0], f"{name!r} is given as well. {remedy}", at_key=True)
    elif given and given[0] is not entries.get("samples"):
        entries["samples"] = _items(given[0], diagnostics)
    elif given and isinstance(given[0].value, list):
        items = [
            replace(item, value={"prompt": item})
            if isinstance(item.value, str)
            else item
            for item in given[0].value
            if not isinstance(item.value, str) or _is_text(item, diagnostics)
        ]
        entries["samples"] = replace(given[0], value=items)


def _items(prompts: ConfigNode, diagnostics: Diagnostics) -> ConfigNode:
    """A list of prompts, or a file of them, as a list of samples."""
    if isinstance(prompts.value, str) and prompts.value.lower().endswith(".txt"):
        lines = _lines(prompts, diagnostics)
    elif isinstance(prompts.value, list):
        lines = prompts.value
    else:
        flag, key = prompts.flag
        remedy = "Write one prompt per line, each after '- ', or give a text file (.txt) with one prompt per line."
        if flag:
            listed = f"{key}=[{prompts.text.strip('()[]')}]"
            remedy = f"Write: {flag} {shlex.quote(listed)}"
        diagnostics.error(prompts, f"is not a list. {remedy}")
        lines = []
    items = [
        replace(line, value={"prompt": line})
        for line in lines
        if _is_text(line, diagnostics)
    ]
    return replace(prompts, value=items)


def _is_text(line: ConfigNode, diagnostics: Diagnostics) -> bool:
    """False for a mapping with the keys of a sample, and for the name of a file, which
    are reported here."""
    if isinstance(line.value, str) and _FILE.fullmatch(line.value):
        diagnostics.error(
            line,
            f"{show(line)} is the name of a file, and a list has the prompts themselves. "
            f"Write 'prompts: {line.value}'.",
        )
        return False
    if isinstance(line.value, dict) and "prompt" in line.value:
        diagnostics.error(
            line,
            "is a mapping, and 'prompts' are texts. "
            f"Write it in 'samples' instead, with its keys: '- prompt: {line.value['prompt'].text}'.",
        )
        return False
    return True


def _text_of(file: ConfigNode, diagnostics: Diagnostics) -> str | None:
    """The text of a file with prompts; None where it cannot be read, which is
    reported."""
    path = Path(file.value).expanduser()
    if diagnostics.reported(file.path):
        return None  # among what is lost
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            diagnostics.error(
                file,
                f"{show(file)} is not a file. Give a text file with one prompt per line.",
            )
            return None
        contents = read_source(path)
        if stands_in := in_its_place(contents):
            diagnostics.error(file, f"{show(file)} {stands_in}.")
            return None
        return contents.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        diagnostics.error(
            file,
            f"{show(file)} cannot be read ({reason}; working directory: {Path.cwd()}).",
        )
        return None


def _lines(file: ConfigNode, diagnostics: Diagnostics) -> list[ConfigNode]:
    """The prompts of a text file; blank lines and those that begin with `#` are left
    out."""
    path = Path(file.value).expanduser()
    text = _text_of(file, diagnostics)
    if text is None:
        return []
    prompts = [
        replace(
            file,
            value=line.strip(),
            path=(*file.path, f"{path.name}:{number}"),
            text=line.strip(),
            plain=False,
        )
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not prompts:
        diagnostics.error(
            file,
            f"{show(file)} holds no prompt. Write one per line; '#' begins a line that is left out.",
        )
    return prompts


# ---------------------------------------------------------------- flags

PATHS = ("ctrl_img", *slot_names("ctrl_img"))

KEYS: dict[str, str] = {
    **{key: key for key in ("width", "height", "seed", "neg", "flow_shift", *PATHS)},
    **{
        "w": "width",
        "h": "height",
        "d": "seed",
        "n": "neg",
        "fs": "flow_shift",
        "ci": "ctrl_img",
    },
    **dict.fromkeys(("s", "steps"), "sample_steps"),
    **dict.fromkeys(("l", "cfg"), "guidance_scale"),
    **dict.fromkeys(("f", "layers"), "layers"),
}
"""Flag -> key of a sample. `--f` is musubi-tuner's: of Qwen-Image-Layered so many
layers, of others one frame."""

NO_EFFECT = {
    "g": "the model has no embedded guidance; guidance is --l",
    "fps": "it concerns videos",
}
"""Flag -> why it does nothing."""

UNSUPPORTED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("m", "network_multiplier"), ("1", "1.0")),
    **dict.fromkeys(("frames", "num_frames"), ("1",)),
    **dict.fromkeys(("gr", "ctrl_idx"), ("0", "0.0")),
    **dict.fromkeys(("p2", "n2", "a", "ref", "ev", "i", "ei", "cn", "of"), ()),
}
"""Flag -> the values that have no effect and therefore pass."""

_FLAG = re.compile(r"(?<!\S)--([A-Za-z]\w*)(?!\S)")
_NEARLY = re.compile(r"(?<!\S)(?:--(\w+)=|[-\u2013\u2014](\w+)\s+)(\S+)")
"""A flag with '=', with one dash, or with the long dash of a word processor, and its
value."""

_QUOTED = re.compile(r"""\s*(?:"[^"]*"|'[^']*')(?!\S)""")


def read_flags(entries: dict[str, ConfigNode], diagnostics: Diagnostics) -> None:
    """Moves the flags of `prompt` to the keys they mean. A key given both ways with
    unlike values is an error."""
    prompt = entries.get("prompt")
    if prompt is None or not isinstance(prompt.value, str):
        return
    for nearly in _NEARLY.finditer(prompt.value):
        name = nearly[1] or nearly[2]
        if name in KEYS:
            diagnostics.warn(
                prompt,
                f"{nearly.group()!r} stays in the text. Write '--{name} {nearly[3]}'.",
            )
    text, flags = split_flags(prompt.value)
    if strange := [flag for flag in _FLAG.findall(prompt.value) if not _is_known(flag)]:
        names = ", ".join(f"'--{name}'" for name in dict.fromkeys(strange))
        diagnostics.warn(
            prompt, f"{names}: no flag of a sample prompt, so it stays in the text."
        )
    if not flags:
        return
    entries["prompt"] = replace(prompt, value=text, text=text)
    images: list[ConfigNode] = []
    for name, value in flags:
        path = (*prompt.path, f"--{name}")
        node = replace(
            prompt, path=path, key_at=prompt.value_at, text=value, plain=True
        )
        key = KEYS.get(name)
        if key is None:
            _refuse(name, value, node, diagnostics)
        elif not value and key != "neg":
            diagnostics.error(node, "needs a value.")
        elif key == "ctrl_img":
            images.append(replace(node, value=_unquoted(value)))
        else:
            if key == "neg":
                read = value
            elif key in PATHS:
                read = _unquoted(value)
            else:
                read = _number(value, node, diagnostics)
            if read is not None:
                entries[key] = merge_aliases(
                    entries.get(key), replace(node, value=read), diagnostics
                )
    if images:
        given = images[0] if len(images) == 1 else replace(images[0], value=images)
        entries["ctrl_img"] = merge_aliases(entries.get("ctrl_img"), given, diagnostics)


def split_flags(text: str) -> tuple[str, list[tuple[str, str]]]:
    """A prompt's text, and its flags with their values as they are written.

    >>> split_flags("a cat --width 512 --seed 7")
    ('a cat', [('width', '512'), ('seed', '7')])
    """
    matches = list(_known_flags(text))
    if not matches:
        return text, []
    ends = [match.start() for match in matches[1:]] + [len(text)]
    flags = [
        (match[1].lower(), text[match.end() : end].strip())
        for match, end in zip(matches, ends, strict=True)
    ]
    return text[: matches[0].start()].strip(), flags


def _known_flags(text: str) -> Iterator[re.Match[str]]:
    at = 0
    while match := _FLAG.search(text, at):
        at = match.end()
        if not _is_known(match[1]):
            continue
        yield match
        if KEYS.get(match[1].lower()) in PATHS:
            if quoted := _QUOTED.match(text, at):
                at = quoted.end()  # a quoted path may hold anything


def _is_known(name: str) -> bool:
    return any(name.lower() in names for names in (KEYS, NO_EFFECT, UNSUPPORTED))


def _refuse(name: str, value: str, node: ConfigNode, diagnostics: Diagnostics) -> None:
    if name in NO_EFFECT:
        diagnostics.warn(node, f"has no effect: {NO_EFFECT[name]}.")
    elif value not in UNSUPPORTED[name]:
        diagnostics.error(node, f"{value!r} is not supported yet. Leave this flag out.")


def _unquoted(value: str) -> str:
    return (
        value[1:-1]
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
        else value
    )


def _number(value: str, node: ConfigNode, diagnostics: Diagnostics) -> Any:
    """The number, the text where it spells none (the field then says what it wants), or
    None for more than one word."""
    first, *more = value.split(maxsplit=1)
    if more:
        diagnostics.error(
            node,
            f"takes one number, and {more[0]!r} follows it. Put the prompt's text before its flags.",
        )
        return None
    for kind in (int, float):
        try:
            return kind(first)
        except ValueError:
            continue
    return first
