"""The forms of the tools, made from the declarations of their flags, and what is wrong
with what such a form sent.

It imports the sections of all tools and the extensions, so the page asks it in a
process of its own (`ask`)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import InputErrors, RunError, UserError
from toolkit.files.writing import python_path

if TYPE_CHECKING:
    from toolkit.train.run_reader import RunInfo

Field = dict[str, Any]
"""A field of a form: key, is_deep (within a section, and not its first), flag, about,
kind (bool, integer, number, path, text), many, required, choices, low, high,
default."""

TIMEOUT_S = 60


def ask(request: Mapping[str, object] | None = None) -> Any:
    """Without a request the forms of all tools by their uid; with {uid, argv} the
    mistakes in them, each (the flag or key of its field or "", message). Raises
    RunError where the other process fails."""
    command = [sys.executable, "-P", "-c", f"from {__name__} import main; main()"]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env=environment,
            timeout=TIMEOUT_S,
        )
        return json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError, OSError) as error:
        raise RunError(f"the tools cannot be read: {error}") from error


def main() -> None:
    """The other process: a request on standard input, the answer on standard output."""
    request = json.load(sys.stdin)
    print(json.dumps(mistakes(**request) if request else forms(), default=str))


def forms() -> dict[str, Any]:
    """Uid -> purpose, description and fields of each tool."""
    from extensions.tools.ui.queue import NOT_QUEUED
    from toolkit.config.reading.tool import ToolConfig
    from toolkit.extension import discover

    found = {}
    extensions = discover()
    for uid, purpose in extensions.tools().items():
        model = extensions.find_command(uid)
        if (
            uid not in NOT_QUEUED
            and model is not None
            and issubclass(model, ToolConfig)
        ):
            about = re.sub(r"^`[^`]+`: ", "", " ".join((model.__doc__ or "").split()))
            found[uid] = {
                "name": extensions[uid].name,
                "purpose": purpose,
                "about": about[:1].upper() + about[1:],
                "fields": _fields(model),
            }
    return found


def _fields(model: Any) -> list[Field]:
    from toolkit.config.reading.normalise import item_annotation, section_model
    from toolkit.config.reading.tool import field_at, flag_of

    keys = dict.fromkeys(
        [
            *model.positional,
            *(key for key in model.model_fields if key not in ("type", "name")),
        ]
    )
    fields = []
    for dotted in (
        each
        for key in keys
        for each in ([f"{key}.{k}" for k in model.sections.get(key, ())] or [key])
    ):
        field, about = field_at(model, dotted)
        owner, *_, last = [model, *dotted.split(".")]
        for part in dotted.split(".")[:-1]:
            owner = section_model(owner.model_fields[part].annotation)
        schema = _one_of(owner.model_json_schema()["properties"][last])
        default = field.get_default() if not field.is_required() else ()
        many = item_annotation(field.annotation) is not Any
        is_path = "_possible_path" in repr(
            (field.annotation, field.metadata)
        )  # a PathStr, or a list of them
        if field.annotation is bool:
            kind = "bool"
        else:
            kind = schema.get("type", "text")
        fields.append(
            {
                "key": dotted,
                "is_deep": dotted.partition(".")[2]
                not in ("", *model.sections.get(dotted.partition(".")[0], ())[:1]),
                "flag": flag_of(model, dotted),
                "about": about,
                "kind": kind
                if kind in ("bool", "integer", "number")
                else "path"
                if is_path
                else "text",
                "many": many,
                "required": field.is_required() and "." not in dotted,
                "choices": [_text(each) for each in schema["enum"]]
                if "enum" in schema
                else None,
                "low": schema.get("minimum", schema.get("exclusiveMinimum")),
                "high": schema.get("maximum", schema.get("exclusiveMaximum")),
                "default": [
                    _text(each)
                    for each in (default if isinstance(default, tuple) else (default,))
                ],
            }
        )
    return fields


def _one_of(schema: dict[str, Any]) -> dict[str, Any]:
    """The one kind of value that is possible besides null and lists of it; empty where
    there are several."""
    parts = []
    for part in schema.get("anyOf", [schema]):
        if part.get("type") != "null":
            parts.append(part)
    single = [part for part in parts if part.get("type") != "array"] or [
        part.get("items", {}) for part in parts
    ]
    return single[0] if len(single) == 1 and "$ref" not in single[0] else {}


def _text(value: object) -> str:
    return (
        ""
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def mistakes(uid: str, argv: Sequence[str]) -> list[tuple[str, str]]:
    """What is wrong with the flags of a tool."""
    from toolkit.config.reading.tool import ToolConfig, load_tool
    from toolkit.extension import discover

    model = discover().find_command(uid)
    assert model is not None and issubclass(model, ToolConfig)
    try:
        load_tool(uid, model, argv)
    except InputErrors as error:
        return [
            (re.sub(r"\[\d+\]$", "", each.place.rpartition(": ")[2]), each.message)
            for each in error.errors
        ]
    except UserError as error:
        return [("", str(error))]
    return []


def suggestions(runs: Iterable[RunInfo], datasets: Path) -> list[str]:
    """Paths that a tool may be given: datasets, the latest of these runs, and their
    files of weights."""
    from toolkit.train.run_reader import list_network_files

    if datasets.is_dir():
        folders = sorted(path for path in datasets.iterdir() if path.is_dir())
    else:
        folders = []
    runs = sorted(runs, key=lambda run: str(run.updated), reverse=True)[:20]
    files = [file.path for run in runs for file in list_network_files(run.folder)][:300]
    return [str(path) for path in (*files, *(run.folder for run in runs), *folders)]
