"""`prompts` of a section of samples: a list, or a text file with one prompt per line."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from toolkit.config.located import ConfigNode, Diagnostics, show
from toolkit.files.writing import read_source
from toolkit.registry import FOREIGN_PROMPTS, load_object


def prompts_to_samples(entries: dict[str, ConfigNode], diagnostics: Diagnostics) -> None:
    """`prompts` become `samples`, and so does a text among `samples`."""
    given = [entries.pop("prompts")] if "prompts" in entries else []
    given += [entries["samples"]] if "samples" in entries and entries["samples"].data() != [] else []
    if len(given) > 1:
        diagnostics.error(given[0], f"{str(given[1].path[-1])!r} is given as well. Remove one of them.", at_key=True)
    elif given and given[0] is not entries.get("samples"):
        entries["samples"] = _items(given[0], diagnostics)
    elif given and isinstance(given[0].value, list):
        items = [
            replace(item, value={"prompt": item}) if isinstance(item.value, str) else item for item in given[0].value
        ]
        entries["samples"] = replace(given[0], value=items)


def _items(prompts: ConfigNode, diagnostics: Diagnostics) -> ConfigNode:
    """A list of prompts, or a file of them, as a list of samples."""
    suffix = Path(prompts.value).suffix.lower() if isinstance(prompts.value, str) else ""
    if suffix in (".json", ".toml"):
        return replace(prompts, value=load_object(FOREIGN_PROMPTS)(prompts, diagnostics))
    if suffix == ".txt":
        lines = _lines(prompts, diagnostics)
    elif isinstance(prompts.value, list):
        lines = prompts.value
    else:
        remedy = "Write one prompt per line, each after '- ', or give a text file (.txt) with one prompt per line."
        diagnostics.error(prompts, f"is not a list. {remedy}")
        lines = []
    return replace(
        prompts, value=[replace(line, value={"prompt": line}) for line in lines if _is_text(line, diagnostics)]
    )


def _is_text(line: ConfigNode, diagnostics: Diagnostics) -> bool:
    """False for a mapping with the keys of a sample, which is reported here."""
    if isinstance(line.value, dict) and "prompt" in line.value:
        message = "is a mapping, and 'prompts' are texts. Write it in 'samples' instead, with its keys"
        diagnostics.error(line, f"{message}: '- prompt: {line.value['prompt'].text}'.")
        return False
    return True


def text_of(file: ConfigNode, diagnostics: Diagnostics) -> str | None:
    """The text of a file with prompts; None where it cannot be read, which is reported."""
    path = Path(file.value).expanduser()
    if diagnostics.reported(file.path):
        return None  # among what is lost
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            diagnostics.error(file, f"{show(file)} is not a file. Give a text file with one prompt per line.")
            return None
        return read_source(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        diagnostics.error(file, f"{show(file)} cannot be read ({reason}; working directory: {Path.cwd()}).")
        return None


def _lines(file: ConfigNode, diagnostics: Diagnostics) -> list[ConfigNode]:
    """The prompts of a text file; blank lines and those that begin with `#` are left out."""
    path, text = Path(file.value).expanduser(), text_of(file, diagnostics)
    if text is None:
        return []
    lines = text.splitlines()
    prompts = [
        replace(file, value=line.strip(), path=(*file.path, f"{path.name}:{number}"), text=line.strip(), plain=False)
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not prompts:
        diagnostics.error(
            file, f"{show(file)} holds no prompt. Write one per line; '#' begins a line that is left out."
        )
    return prompts
