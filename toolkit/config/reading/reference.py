"""The JSON Schema of a job, generated from the section models.

`schema` returns the schema that editors use (docs/job.schema.json), `schema_text` its
text. `sections_of` and `by_model` list the sections for docs/config.md. The models are
passed in by their process type: this room does not know which extensions exist.

`docs/generate.py` and `run.py --print-schema` call it. Nothing here checks a job.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from toolkit.config.reading.base import StrictModel
from toolkit.config.reading.foreign import ForeignName, foreign_keys
from toolkit.config.reading.normalise import item_annotation, other_names, section_model

Models = Mapping[str, type[BaseModel]]


def schema(models: Models) -> dict[str, Any]:
    """A JSON Schema of a whole job file, for editors. Other names of a key are marked
    deprecated."""
    grouped = by_model(models)
    places, generated = models_json_schema(
        [(model, "validation") for model in grouped], ref_template="#/$defs/{model}"
    )
    definitions = generated["$defs"]
    for model in grouped:
        for _, section in sections_of(model):
            if issubclass(section, StrictModel):
                _add_other_names(definitions[section.__name__], section)
    required = {model: _taken_required(model, definitions) for model in grouped}
    conditions, needed = (
        [
            {"if": {"properties": {"type": {"enum": types}}}, "then": then[model]}
            for model, types in grouped.items()
        ]
        for then in (
            {model: places[model, "validation"] for model in grouped},
            required,
        )
    )
    for definition in definitions.values():
        _take_variables(definition)
    definitions["Variable"] = _VARIABLE
    process = {
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"anyOf": [{"enum": list(models)}, {"type": "string"}]}},
        "allOf": conditions,
    }
    config = {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "process"],
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "process": {"type": "array", "minItems": 1, "items": process},
            "defaults": {"type": "object"},
        },
        # what a process has to have may stand in `defaults`
        "if": {"not": {"required": ["defaults"]}},
        "then": {"properties": {"process": {"items": {"allOf": needed}}}},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Atelier job",
        "type": "object",
        "additionalProperties": False,
        "required": ["job", "config"],
        "properties": {
            "job": {"const": "extension"},
            "config": config,
            "meta": {"type": "object"},
        },
        "$defs": definitions,
    }


def schema_text(value: Any, depth: int = 4) -> str:
    """A schema as JSON with a line for each key of a section.

    >>> print(schema_text({"a": {"b": [1, 2]}}, depth=1))
    {
    "a": {"b": [1, 2]}
    }
    """
    if not (depth and isinstance(value, dict) and value):
        return json.dumps(value, ensure_ascii=False)
    lines = (f"{json.dumps(k)}: {schema_text(v, depth - 1)}" for k, v in value.items())
    return "{\n" + ",\n".join(lines) + "\n}"


_VARIABLE = {"type": "string", "pattern": r"\$\{"}
"""A text with `${NAME}`, which may stand for any single value."""


def _taken_required(
    model: type[BaseModel], definitions: dict[str, Any]
) -> dict[str, Any]:
    """The keys that a process of this model has to have, in its sections too, as a
    schema; the definitions no longer have them. Entries of lists keep theirs."""
    whole: dict[str, Any] = {}
    for path, section in sections_of(model):
        names = definitions[section.__name__].get("required")
        if "[]" in path or not names:
            continue
        part = whole
        for key in filter(None, path.split(".")):
            part = part.setdefault("properties", {}).setdefault(key, {})
        part["required"] = names
    for path, section in sections_of(model):
        if "[]" not in path:
            definitions[section.__name__]["required"] = []
    return whole


def _take_variables(schema: Any) -> None:
    """Lets a variable stand for each number, switch and choice of a schema."""
    if isinstance(schema, list):
        for part in schema:
            _take_variables(part)
    if not isinstance(schema, dict):
        return
    for key, part in schema.items():
        if key != "default":
            _take_variables(part)
    if isinstance(schema.get("title"), str):  # of a key: its name again
        del schema["title"]
    if schema.get("type") in ("integer", "number", "boolean"):
        schema |= {**_VARIABLE, "type": [schema["type"], "string"]}
    elif {"enum", "const"} & schema.keys():
        choice = {
            key: schema.pop(key) for key in ("enum", "const", "type") if key in schema
        }
        schema["anyOf"] = [choice, {"$ref": "#/$defs/Variable"}]


def _add_other_names(definition: dict[str, Any], section: type[StrictModel]) -> None:
    properties = definition["properties"]
    for key, row in other_names(section, foreign_keys()).items():
        if row.how == "renamed_to":
            added = {
                **properties[row.field],
                "deprecated": True,
                "description": f"Means `{row.field}`.",
            }
        elif row.how == "converted_to":
            added = {"description": f"Means {meaning(row)}."}
        elif row.how == "not_needed":
            added = {"deprecated": True, "description": f"No effect: {row.says}."}
        else:
            added = {
                "deprecated": True,
                "description": "Not supported yet.",
                "enum": [None, *row.passes],
            }
        properties.setdefault(key, added)


def by_model(models: Models) -> dict[type[BaseModel], list[str]]:
    """Section model -> the process types that use it, in the order of `models`."""
    grouped: dict[type[BaseModel], list[str]] = {}
    for name, model in models.items():
        grouped.setdefault(model, []).append(name)
    return grouped


def sections_of(
    model: type[BaseModel], path: str = ""
) -> Iterator[tuple[str, type[BaseModel]]]:
    """`path` and the model, then each section in it with its dotted path, at any depth.
    A section that is the item of a list has `[]` after its key."""
    yield path, model
    for name, field in model.model_fields.items():
        inner = section_model(field.annotation)
        suffix = ""
        if inner is None:
            inner = section_model(item_annotation(field.annotation))
            suffix = "[]"
        if inner is not None:
            yield from sections_of(inner, f"{path}.{name}{suffix}".lstrip("."))


def meaning(row: ForeignName) -> str:
    """The meaning of a foreign name: its note, else our keys joined by "and"."""
    return row.says or " and ".join(row.ours)
