"""The flags in a sample's prompt: `a cat --w 512 --n blurry, dark`.

A flag is ` --<known name>` between spaces; it stands behind the prompt's text, and its value reaches to the next flag.
Everything else with two dashes is text. The names are those of musubi-tuner (hv_train_network.py,
`line_to_prompt_dict`) and of ai-toolkit (config_modules.py, `GenerateImageConfig`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from toolkit.config.field_types import slot_names
from toolkit.config.located import ConfigNode, Diagnostics
from toolkit.config.normalise import merge_aliases

PATHS = ("ctrl_img", *slot_names("ctrl_img"))

KEYS: dict[str, str] = {
    **{key: key for key in ("width", "height", "seed", "neg", "flow_shift", *PATHS)},
    **{"w": "width", "h": "height", "d": "seed", "n": "neg", "fs": "flow_shift", "ci": "ctrl_img"},
    **dict.fromkeys(("s", "steps"), "sample_steps"),
    **dict.fromkeys(("l", "cfg"), "guidance_scale"),
}
"""Flag -> key of a sample."""

NO_EFFECT = {"g": "the model has no embedded guidance; guidance is --l", "fps": "it concerns videos"}
"""Flag -> why it does nothing."""

UNSUPPORTED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("m", "network_multiplier"), ("1", "1.0")),
    **dict.fromkeys(("f", "frames", "num_frames"), ("1",)),
    **dict.fromkeys(("gr", "ctrl_idx"), ("0", "0.0")),
    **dict.fromkeys(("p2", "n2", "a", "ref", "ev", "i", "ei", "cn", "of"), ()),
}
"""Flag -> the values that have no effect and therefore pass."""

_FLAG = re.compile(r"(?<!\S)--([A-Za-z]\w*)(?!\S)")
_QUOTED = re.compile(r"""\s*(?:"[^"]*"|'[^']*')(?!\S)""")


def read_flags(entries: dict[str, ConfigNode], diagnostics: Diagnostics) -> None:
    """Moves the flags of `prompt` to the keys they mean. A key given both ways with unlike values is an error."""
    prompt = entries.get("prompt")
    if prompt is None or not isinstance(prompt.value, str):
        return
    text, flags = split_flags(prompt.value)
    if strange := [found for found in _FLAG.findall(prompt.value) if not _is_known(found)]:
        names = ", ".join(f"'--{name}'" for name in dict.fromkeys(strange))
        diagnostics.warn(prompt, f"{names}: no flag of a sample prompt, so it stays in the text.")
    if not flags:
        return
    entries["prompt"] = replace(prompt, value=text, text=text)
    images: list[ConfigNode] = []
    for name, value in flags:
        path = (*prompt.path, f"--{name}")
        node = replace(prompt, path=path, key_at=prompt.value_at, text=value, plain=True)
        key = KEYS.get(name)
        if key is None:
            _refuse(name, value, node, diagnostics)
        elif not value and key != "neg":
            diagnostics.error(node, "needs a value.")
        elif key == "ctrl_img":
            images.append(replace(node, value=_unquoted(value)))
        else:
            read = value if key == "neg" else _unquoted(value) if key in PATHS else _number(value, node, diagnostics)
            if read is not None:
                entries[key] = merge_aliases(entries.get(key), replace(node, value=read), diagnostics)
    if images:
        given = images[0] if len(images) == 1 else replace(images[0], value=images)
        entries["ctrl_img"] = merge_aliases(entries.get("ctrl_img"), given, diagnostics)


def split_flags(text: str) -> tuple[str, list[tuple[str, str]]]:
    """A prompt's text, and its flags with their values as they stand there."""
    found = list(_known_flags(text))
    if not found:
        return text, []
    ends = [match.start() for match in found[1:]] + [len(text)]
    flags = [(match[1].lower(), text[match.end() : end].strip()) for match, end in zip(found, ends, strict=True)]
    return text[: found[0].start()].strip(), flags


def _known_flags(text: str) -> Iterator[re.Match[str]]:
    at = 0
    while match := _FLAG.search(text, at):
        at = match.end()
        if not _is_known(match[1]):
            continue
        yield match
        if KEYS.get(match[1].lower()) in PATHS and (quoted := _QUOTED.match(text, at)):
            at = quoted.end()  # a quoted path may hold anything


def _is_known(name: str) -> bool:
    return any(name.lower() in names for names in (KEYS, NO_EFFECT, UNSUPPORTED))


def _refuse(name: str, value: str, node: ConfigNode, diagnostics: Diagnostics) -> None:
    if name in NO_EFFECT:
        diagnostics.warn(node, f"has no effect: {NO_EFFECT[name]}.")
    elif value not in UNSUPPORTED[name]:
        diagnostics.error(node, f"{value!r} is not supported yet. Leave this flag out.")


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


def _number(value: str, node: ConfigNode, diagnostics: Diagnostics) -> Any:
    """The number, the text where it spells none (the field then says what it wants), or None for more than one word."""
    first, *more = value.split(maxsplit=1)
    if more:
        diagnostics.error(
            node, f"takes one number, and {more[0]!r} follows it. Put the prompt's text before its flags."
        )
        return None
    for kind in (int, float):
        try:
            return kind(first)
        except ValueError:
            continue
    return first
