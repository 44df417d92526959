"""docs/config.md: every key of a job, from the section models."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from toolkit.config.reading.base import StrictModel, descriptions
from toolkit.config.reading.foreign import ForeignName, foreign_keys
from toolkit.config.reading.normalise import item_annotation, other_names, section_model
from toolkit.config.reading.reference import Models, by_model, meaning, sections_of

_HEAD = """# Configuration reference

Every key of a job. [ten_keys.md](ten_keys.md) has the ten that most jobs change. A job is a YAML, JSON or JSONC file:

```yaml
job: extension
config:
  name: my_char
  process:
    - type: sd_trainer
      trigger_word: mychr
      datasets: [{folder_path: datasets/my_char}]
      train: {steps: 2000}
      model: {name_or_path: Qwen/Qwen-Image-Edit-2509}
```

| key | meaning |
|---|---|
| `job` | always `extension` |
| `config.name` | the job's name and the name of its folder; `[name]` in any text becomes it |
| `config.process` | list of processes that run in order; each has a `type`, perhaps a `name` \
(its files then go to `<job>/<name>/`), and the keys below |
| `config.defaults` | merged under each process: mappings merge, all else is replaced (one line for `datasets`) |
| `meta` | mapping that goes into the LoRA's metadata; `${VAR}` in it stays as written |

`${VAR}` and `${VAR:-default}` in values come from the environment, also within braces; `$${VAR}` is the text itself.
Paths are relative to the working directory. null and an empty text mean "not given". Unknown keys are refused; all
mistakes of a file are shown at once with line and column.

A row shows a key with its default, its meaning and, in brackets, its range: numbers are 0 or more and other keys take a
text unless it says more. Names after "also" are accepted in the same place, those after "musubi-tuner:" in its files
alone. A key or a section that is the same in several places is described at the first of them.
"""

_HEADING = re.compile(r"\A`(?:type: |run\.py )?[\w.\[\]]+`: ")
"""Begin of a section's text, which its heading says."""

_EVERYWHERE = ("type", "name")
"""Keys of each process, which the head describes."""

_LISTS = {"number types": "half", "quantized types": "qfloat8"}
"""Name of a list of values that many keys take -> one of the values, which no other
list has."""


def render(models: Models) -> str:
    """The reference page in Markdown."""
    parts = []
    shown: set[type[BaseModel]] = set()
    first: dict[str, str] = {}
    for model, types in by_model(models).items():
        parts.append(
            f"\n## type: {', '.join(f'`{name}`' for name in types)}\n\n{_about(model)}\n"
        )
        for path, section in sections_of(model):
            if section not in shown:
                place = f"`{path}` of `{types[0]}`" if path else f"`{types[0]}`"
                parts.append(_section(path, section, place, first))
                shown.add(section)
    for name, some in _LISTS.items():
        values = next(each for each in _choices(shown) if some in each)
        listed = ", ".join(f"`{value}`" for value in values)
        parts.append(f"\n## {name.capitalize()}\n\n{listed}\n")
    return "".join([_HEAD, *parts])


def _choices(models: Iterable[type[BaseModel]]) -> Iterator[list[str]]:
    """Each list of values that a key of these sections takes."""
    waiting: list[Any] = [model.model_json_schema()["properties"] for model in models]
    while waiting:
        match waiting.pop(0):
            case {"enum": [*values]}:
                yield values
            case dict() as part:
                waiting += part.values()
            case list() as parts:
                waiting += parts


def about(model: type[BaseModel]) -> tuple[str, str]:
    """What a section is for, in one paragraph, and an example of it in YAML, or ""."""
    text, _, example = (inspect.getdoc(model) or "").partition("\n\nExample:\n")
    return " ".join(text.split()), textwrap.dedent(example).strip()


def _about(model: type[BaseModel]) -> str:
    text, example = about(model)
    text = _HEADING.sub("", text)
    text = f"{text[:1].upper()}{text[1:]}"
    return f"{text}\n\n```yaml\n{example}\n```" if example else text


def _section(
    path: str, model: type[BaseModel], place: str, first: dict[str, str]
) -> str:
    """first: row -> where it was shown, which the rows of this section are added to."""
    properties = model.model_json_schema()["properties"]
    foreign, described = other_names(model, foreign_keys()), descriptions(model)
    rows, again = [], dict[str, list[str]]()
    for name, field in model.model_fields.items():
        more = [_range(field, properties[name]), *_names(name, path, foreign)]
        aside = "; ".join(filter(None, more))
        said = [_cell(described.get(name) or ""), aside and f"({aside})"]
        row = f"| {_given(name, field)} | {' '.join(filter(None, said))} |"
        if row in first:
            again.setdefault(first[row], []).append(f"`{name}`")
        elif path or name not in _EVERYWHERE:
            rows.append(row)
            first[row] = place
    text = f"\n### `{path}`\n\n{_about(model)}\n" if path else ""
    if rows:
        text += "\n".join(["", "| key | meaning |\n|---|---|", *rows, ""])
    for where, names in again.items():
        text += f"\nAs in {where}: {', '.join(names)}.\n"
    return text + "".join(f"\n{line}\n" for line in _other_names(foreign, first))


def _names(field: str, path: str, foreign: Mapping[str, ForeignName]) -> list[str]:
    """The names that are accepted for a field, then those that only musubi-tuner has
    for it."""
    # here: the tests of the core take sections from this module, without any part
    from extensions.compat.names import options

    accepted = [
        key
        for key, row in foreign.items()
        if row.how == "renamed_to" and row.field == field
    ]
    theirs = [
        key
        for key, (_, row) in options().items()
        if dotted(path, field) in row.ours and key != field and key not in foreign
    ]
    return [
        f"{whose} {', '.join(f'`{key}`' for key in keys)}"
        for whose, keys in (("also", accepted), ("musubi-tuner:", theirs))
        if keys
    ]


def dotted(path: str, key: str) -> str:
    """A key's place in a job."""
    return f"{path}.{key}".lstrip(".")


_TITLES = {
    "converted_to": "Also accepted",
    "not_needed": "Accepted with a warning, no effect",
    "only_accepts": "Not supported yet",
}
"""What becomes of another program's name -> what the page calls it."""


def _other_names(
    foreign: Mapping[str, ForeignName], first: dict[str, str]
) -> Iterator[str]:
    """The names that are not those of a row. first: those that were shown, which these
    are added to."""
    for how, title in _TITLES.items():
        same = dict[str, list[str]]()
        for key, row in foreign.items():
            says = {"converted_to": _cell(meaning(row)), "not_needed": row.says}
            if row.how == how and first.setdefault(f"{key} {row}", title) is title:
                same.setdefault(says.get(how, ""), []).append(key)
                first[f"{key} {row}"] = "shown"
        if same:
            listed = (
                ", ".join(_numbered(keys)) + (f" ({reason})" if reason else "")
                for reason, keys in same.items()
            )
            yield f"{title}: {'; '.join(listed)}."


def _numbered(keys: list[str]) -> Iterator[str]:
    """`x_1` to `x_10` as one."""
    stems = [key.rstrip("0123456789") for key in keys]
    for stem in dict.fromkeys(stems):
        own = [key for key, its in zip(keys, stems, strict=True) if its == stem]
        if len(own) > 2:
            yield f"`{own[0]}` to `{own[-1]}`"
        else:
            yield from (f"`{key}`" for key in own)


def _range(field: Any, schema: dict[str, Any]) -> str:
    """What a value may be, in brackets, where the default does not show it."""
    if section_model(field.annotation):
        return ""
    if section_model(item_annotation(field.annotation)) and "anyOf" not in schema:
        return ""
    kind, value = _kind(schema), _value(field)
    if kind in ("text", f"`{value}`") or (kind == "true/false" and value is not None):
        return ""
    if schema.get("type") in ("integer", "number") and value is not None:
        return _bounds(schema)
    return kind


def _kind(schema: dict[str, Any]) -> str:
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        for name, some in _LISTS.items():
            if some in values:
                return f"[{name}](#{name.replace(' ', '-')})"
        return ", ".join(
            f"`{value if isinstance(value, str) else json.dumps(value)}`"
            for value in values
        )
    if "anyOf" in schema:
        kinds = [_kind(part) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in schema:
        return "section"
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    names = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true/false",
        "string": "text",
    }
    kind = names.get(
        schema.get("type", ""), "mapping" if schema.get("type") == "object" else "any"
    )
    return " ".join(filter(None, [kind, _bounds(schema)]))


_ENDLESS = 10**5
"""Upper bounds from here on only catch slips of the pen; the schema has them."""


def _bounds(schema: dict[str, Any]) -> str:
    if schema.get("type") not in ("integer", "number"):
        return ""
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    high, below = (
        None if bound is None or bound >= _ENDLESS else bound for bound in (high, below)
    )
    if low is None and above is None:
        return "may be negative"
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (
            ("from", low or None),
            ("above", above),
            ("at most", high),
            ("below", below),
        )
        if bound is not None
    ]
    return ", ".join(bounds)


def _value(field: Any) -> Any:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "default" in extra:
        return extra["default"]
    if field.is_required():
        return None
    return field.get_default(call_default_factory=True, validated_data={})


def _given(name: str, field: Any) -> str:
    """A key with its default, as YAML has it."""
    value = _value(field)
    if field.is_required():
        return f"`{name}` (required)"
    if value is None or value in ("", (), {}) or isinstance(value, BaseModel):
        return f"`{name}`"
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{name}: {text}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def keys(models: Models) -> dict[str, bool]:
    """Every key of a job by its place, `datasets[].num_repeats` say, and whether it
    works (or is refused by name)."""
    told = ("title", "author", "description", "license", "tags", "training_comment")
    found = dict.fromkeys(
        ("config.name", "config.defaults", *(f"meta.{name}" for name in told)), True
    )
    for path, section in distinct_sections(models):
        refused = [
            name
            for name, row in other_names(section, foreign_keys()).items()
            if row.how == "only_accepts"
        ]
        found |= {dotted(path, name): False for name in refused}
        found |= {dotted(path, name): True for name in section.model_fields}
    return found


def distinct_sections(models: Models) -> Iterator[tuple[str, type[StrictModel]]]:
    """Each section once, at its first place."""
    shown: set[type[BaseModel]] = set()
    for model in by_model(models):
        for path, section in sections_of(model):
            if section not in shown and issubclass(section, StrictModel):
                yield path, section
            shown.add(section)
