"""The forms of the tools, made from their config sections, and the check of a form.

`forms` describes the fields of every tool, and `mistakes` checks a filled form as the
command line does. Both import the sections of all tools and all extensions, so the page
calls them in a separate process: `ask` starts this module and reads its answer. No tool
is run here, and the queue is not changed.

`extensions.tools.ui.views.tools` shows the forms and calls `ask`. `suggestions` runs in
the page's own process, and offers paths to type.
"""

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
"""A field of a form: `key`, `is_deep` (it is in a section, and not its first key),
`flag`, `about`, `kind` (`bool`, `integer`, `number`, `path`, `text`), `many`,
`required`, `choices`, `low`, `high` and `default`."""

TIMEOUT_S = 60


def ask(request: Mapping[str, object] | None = None) -> Any:
    """Asks the other process.

    request: None returns the forms of all tools, by their uid (`forms`). A mapping with
    `uid` and `argv` returns the mistakes in these flags (`mistakes`).

    Raises RunError if the other process fails or takes longer than TIMEOUT_S.

    Example::

        wrong = ask({"uid": "generate", "argv": ["--lora=cat.safetensors"]})
    """
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
    """The other process: reads a request on standard input and prints the answer."""
    request = json.load(sys.stdin)
    print(json.dumps(mistakes(**request) if request else forms(), default=str))


def forms() -> dict[str, Any]:
    """Uid of a tool -> its `name`, `purpose`, description (`about`) and `fields`."""
    from extensions.tools.ui.queue import NOT_QUEUED
    from toolkit.config.reading.tool import ToolConfig
    from toolkit.extension import discover

    tools = {}
    extensions = discover()
    for uid, purpose in extensions.tools().items():
        model = extensions.find_command(uid)
        if (
            uid not in NOT_QUEUED
            and model is not None
            and issubclass(model, ToolConfig)
        ):
            about = re.sub(r"^`[^`]+`: ", "", " ".join((model.__doc__ or "").split()))
            tools[uid] = {
                "name": extensions[uid].name,
                "purpose": purpose,
                "about": about[:1].upper() + about[1:],
                "fields": _fields(model),
            }
    return tools


def _fields(model: Any) -> list[Field]:
    from toolkit.config.reading.normalise import item_annotation, section_model
    from toolkit.config.reading.tool import field_at, flag_of

    fields = []
    for dotted in _dotted_keys(model):
        field, about = field_at(model, dotted)
        owner, *_, last = [model, *dotted.split(".")]
        for part in dotted.split(".")[:-1]:
            owner = section_model(owner.model_fields[part].annotation)
        schema = _one_of(owner.model_json_schema()["properties"][last])
        default = field.get_default() if not field.is_required() else ()
        defaults = default if isinstance(default, tuple) else (default,)
        section, _, key = dotted.partition(".")
        first_key = model.sections.get(section, ())[:1]
        choices = (
            [_text(choice) for choice in schema["enum"]] if "enum" in schema else None
        )
        fields.append(
            {
                "key": dotted,
                "is_deep": key not in ("", *first_key),
                "flag": flag_of(model, dotted),
                "about": about,
                "kind": _kind(field, schema),
                "many": item_annotation(field.annotation) is not Any,
                "required": field.is_required() and "." not in dotted,
                "choices": choices,
                "low": schema.get("minimum", schema.get("exclusiveMinimum")),
                "high": schema.get("maximum", schema.get("exclusiveMaximum")),
                "default": [_text(value) for value in defaults],
            }
        )
    return fields


def _dotted_keys(model: Any) -> list[str]:
    """The keys of a tool, the positional ones first. A section is replaced by its
    keys."""
    own_keys = [key for key in model.model_fields if key not in ("type", "name")]
    dotted_keys = []
    for key in dict.fromkeys([*model.positional, *own_keys]):
        inner = [f"{key}.{name}" for name in model.sections.get(key, ())]
        dotted_keys += inner or [key]
    return dotted_keys


def _kind(field: Any, schema: dict[str, Any]) -> str:
    """Which input a field has: `bool`, `integer`, `number`, `path` or `text`."""
    if field.annotation is bool:
        return "bool"
    kind = schema.get("type", "text")
    if kind in ("bool", "integer", "number"):
        return str(kind)
    if "_possible_path" in repr((field.annotation, field.metadata)):
        return "path"  # a PathStr, or a list of them
    return "text"


def _one_of(schema: dict[str, Any]) -> dict[str, Any]:
    """The only kind of value that a key takes, besides null and lists of this kind.
    Empty if it takes several."""
    parts = [
        part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"
    ]
    single = [part for part in parts if part.get("type") != "array"]
    if not single:
        single = [part.get("items", {}) for part in parts]
    return single[0] if len(single) == 1 and "$ref" not in single[0] else {}


def _text(value: object) -> str:
    """A value as a flag has it: `true` and `false` in lower case, None as empty."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def mistakes(uid: str, argv: Sequence[str]) -> list[tuple[str, str]]:
    """The mistakes in the flags of a tool: the flag or key of the field, and a message.

    The flag is empty where a mistake concerns no single field.
    """
    from toolkit.config.reading.tool import ToolConfig, load_tool
    from toolkit.extension import discover

    model = discover().find_command(uid)
    assert model is not None and issubclass(model, ToolConfig)
    try:
        load_tool(uid, model, argv)
    except InputErrors as error:
        wrong = []
        for mistake in error.errors:
            place = re.sub(r"\[\d+\]$", "", mistake.place.rpartition(": ")[2])
            wrong.append((place, mistake.message))
        return wrong
    except UserError as error:
        return [("", str(error))]
    return []


def suggestions(runs: Iterable[RunInfo], datasets: Path) -> list[str]:
    """Paths to offer for the fields of a tool: the datasets, the latest 20 of these runs,
    and up to 300 of their LoRA files."""
    from toolkit.train.run_reader import list_network_files

    folders = sorted(path for path in datasets.glob("*") if path.is_dir())
    runs = sorted(runs, key=lambda run: str(run.updated), reverse=True)[:20]
    files = [file.path for run in runs for file in list_network_files(run.folder)][:300]
    return [str(path) for path in (*files, *(run.folder for run in runs), *folders)]
