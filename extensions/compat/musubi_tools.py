"""A command of one of musubi-tuner's other scripts -> ours: images, captions, averages,
forms of LoRA files.

The result is a list of words for `run.py`; the tool checks their values as always. Flags
that have no counterpart are named in a note or an error. The core finds the function
through `toolkit.registry`, when a pasted command is not one that trains.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from extensions.compat.command import NOT_NEEDED, commands, parted, stray_flags
from extensions.compat.musubi import FILE, PARTS, VERSION, VERSIONS, model_of
from extensions.compat.names import options, tool_flags
from toolkit.data.pixels.images import ImageError, image_size
from toolkit.errors import UserError, did_you_mean


class Script(NamedTuple):
    """What stands for a script here.

    >>> SCRIPTS["qwen_extract_lora.py"].tool
    'extract'
    """

    tool: str
    defaults: Mapping[str, str] = {}
    """Flags with the values that are left out there and are others here."""


SCRIPTS = {
    "qwen_image_generate_image.py": Script(
        "generate",
        {"--height": "256", "--width": "256", "--steps": "25", "--cfg": "4.0"},
    ),
    "caption_images_by_qwen_vl.py": Script("caption", {"--format": "jsonl"}),
    "lora_post_hoc_ema.py": Script("post_hoc_ema"),
    "convert_lora.py": Script("convert"),
    "qwen_extract_lora.py": Script("extract", {"--rank": "4"}),
    "merge_lora.py": Script("merge"),
}

VALUES = {
    ("convert", "target", "default"): "--to musubi",
    ("convert", "target", "other"): "--to comfyui",
    ("caption", "output_format", "text"): "--format txt",
    ("caption", "fp8_vl", ""): "--quantize float8",
    ("generate", "fp8", ""): "--quantize --qtype float8",
    ("generate", "fp8_scaled", ""): "--quantize --qtype fp8_scaled",
    ("generate", "fp8_vl", ""): "--quantize-te --qtype-te float8",
    ("generate", "resize_control_to_image_size", ""): "--match-target-res",
    ("generate", "output_type", "images"): "",
    ("generate", "no_metadata", ""): "--metadata false",
    ("generate", "lycoris", ""): "",
}
"""Tool, flag and its value -> our words."""

IDLE = frozenset({"output_type", "resize_control_to_official_size", "lycoris"})
"""Flags whose value is what is done anyway."""

RESIZED = ("resize_control_to_image_size", "resize_control_to_official_size")
"""Flags that say how large control images are."""

LEAST_CONTROL = 64
MOST_CONTROL = 4096
"""Bounds of `control_resolution`."""

FLAGS = {
    "model_org": "--base", "model_tuned": "--tuned", "dim": "--rank", "output_file": "--output",
    "save_merged_model": "--output",
}  # fmt: skip
"""Flag of a script that nothing else of that program has -> ours."""

OF_MERGING = frozenset(
    {
        "lora_weight",
        "lora_multiplier",
        "save_merged_model",
        "include_patterns",
        "exclude_patterns",
    }
)
"""Flags that count where the script for images merges a model and generates none."""


def tool_command(
    text: str, known: Mapping[str, Collection[str]]
) -> tuple[list[str], list[str]] | None:
    """The words of our command, and a line for each flag that is left out; None for
    other scripts.

    known: tool -> its flags. Raises UserError for commands that encode beforehand, of
    which the place is not known, and for one that lost its end.
    """
    scripts = [
        (script.text, flags)
        for script, _, flags in map(parted, commands(text))
        if script
    ]
    if not scripts:
        return None
    first, first_flags = scripts[0]
    if all(script in NOT_NEEDED for script, _ in scripts):
        where = "What is encoded is kept in the folder of the training, which this command does not name"
        remedy = (
            "In advance: `run.py cache FILE`, with the command of the training in FILE"
        )
        raise UserError(f"{first}: {NOT_NEEDED[first]}. {where}. {remedy}.")
    if first not in SCRIPTS:
        return None
    for at, reason in stray_flags(text):
        raise UserError(f"line {at.line}: {reason}")
    tool, defaults = SCRIPTS[first]
    given, positional = _grouped([word.text for word in first_flags])
    if tool == "generate" and "save_merged_model" in given:
        # The script only merges then, and generates no image.
        tool, defaults = SCRIPTS["merge_lora.py"]
        names = [name for name in given if name in OF_MERGING or name in PARTS]
        given = {name: given[name] for name in names}
    words = [tool, *positional]
    one = "one command is read at a time. Give it by itself"
    notes = [
        f"{script} is left out: {NOT_NEEDED.get(script, one)}."
        for script, _ in scripts[1:]
    ]
    strengths = given.pop("lora_multiplier", [])
    words += _model(given, tool, known[tool])
    if tool == "generate" and "control_image_path" in given:
        size, note = _control_size(given)
        words += size
        notes += note
    for name, values in given.items():
        if name == "lora_weight":
            values = _with_strengths(values, strengths)
        ours = _ours(name, values, tool, known[tool])
        words += ours
        if not ours and name not in IDLE:
            notes.append(f"--{name}: {_why_not(name, tool, known[tool])}")
    for flag, value in defaults.items():
        if flag not in words:
            words += [flag, value]
    return words, notes


def _why_not(name: str, tool: str, known: Collection[str]) -> str:
    """Why a flag is left out: what the table of names says of it."""
    rows = [tool_flags().get(name), options().get(name, ("", None))[1]]
    if not any(rows):
        near = did_you_mean(f"--{name}", known, list_all=False)
        return f"{tool} has no such flag. {near}".rstrip()
    said = (row.says for row in rows if row and row.says and row.how != "converted_to")
    reason = next(said, f"{tool} has none")
    return f"{reason.removesuffix(' Leave it out.').rstrip('.')}."


def _grouped(words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Flag -> its values; and what stands before the first."""
    given: dict[str, list[str]] = {}
    positional: list[str] = []
    values = positional
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            values = given.setdefault(name, [])
            if equals:
                values.append(value)
        else:
            values.append(word)
    return given, positional


def _model(given: dict[str, list[str]], tool: str, known: Collection[str]) -> list[str]:
    """The model that a script is told by its parts, which are taken out of `given`."""
    if tool == "caption":
        path = "".join(given.pop("model_path", []))
        if path:
            return ["--text-encoder-path" if path.endswith(FILE) else "--model", path]
    paths = {key: given.pop(key)[0] for key in PARTS if given.get(key)}
    if "dit" not in paths or "--model" not in known:
        return []
    switches = [
        VERSIONS[key] for key in VERSIONS if key in given and not given.pop(key)
    ]
    versions = given.pop("model_version", []) or switches or [VERSION]
    named = model_of(paths, versions[0])
    if tool == "merge":
        return ["--base", paths["dit"] if "dit" in named.alone else named.model]
    files = [(f"--{PARTS[key].replace('_', '-')}", paths[key]) for key in named.alone]
    return ["--model", named.model, *(word for pair in files for word in pair)]


def _control_size(given: Mapping[str, list[str]]) -> tuple[list[str], list[str]]:
    """Our words for the size of control images, and a line. Raises UserError for flags
    that exclude each other."""
    resized = [name for name in RESIZED if name in given]
    if len(resized) == 2:
        raise UserError(
            f"--{resized[0]} and --{resized[1]} exclude each other, there too. Keep one of them."
        )
    if resized:
        return [], []
    sides = set()
    try:
        for path in given["control_image_path"]:
            sides.add(math.isqrt(math.prod(image_size(Path(path).expanduser()))))
    except ImageError:  # which our command says
        sides = set()
    there = f"--control_image_path: without --{RESIZED[0]} or --{RESIZED[1]} it keeps its own size there,"
    if len(sides) == 1 and LEAST_CONTROL <= min(sides) <= MOST_CONTROL:
        return ["--control-resolution", str(min(sides))], [
            f"{there} and here, but for multiples of 32."
        ]
    return [], [
        f"{there} and has the area of 1024 x 1024 pixels here (--control-resolution)."
    ]


def _ours(
    name: str, values: Sequence[str], tool: str, known: Collection[str]
) -> list[str]:
    """Our words for a flag; none where it has no counterpart."""
    with_value = (tool, name, values[0] if values else "")
    if with_value in VALUES:
        return VALUES[with_value].split()
    command = options()[name][1].tool if name in options() else ""
    of_tool, *flags = command.split() or [""]
    if of_tool == tool and len(flags) == len(values) > 1:
        return [word for pair in zip(flags, values, strict=True) for word in pair]
    row = tool_flags().get(name)
    renamed = f"--{row.field}" if row and row.how == "renamed_to" else ""
    places = (
        FLAGS.get(name),
        renamed,
        flags[0] if of_tool == tool and flags else "",
        f"--{name.replace('_', '-')}",
    )
    flag = next((flag for flag in places if flag in known), "")
    return [flag, *values] if flag else []


def _with_strengths(files: list[str], strengths: list[str]) -> list[str]:
    """`FILE:STRENGTH` for each file that has a strength, else `FILE`."""
    words = []
    for index, file in enumerate(files):
        if index < len(strengths):
            words.append(f"{file}:{strengths[index]}")
        else:
            words.append(file)
    return words
