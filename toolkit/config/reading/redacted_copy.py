"""The config as it is saved with the results of a run.

`saved_text` returns the user's own YAML, with comments and `${VAR}` as written; only
secrets, the name and changed keys are replaced in place. Other formats are written as YAML.
`job_text` writes a new YAML file for a job that was made from a file of another
program, with the origin of each value.

`loader.py` calls both while the file is read, and the text becomes
`JobConfig.unexpanded_text`. A process writes it to its folder. Redaction of logs is in
`toolkit/files/redact.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import yaml

from toolkit.config.reading.changes import NAME, put
from toolkit.config.reading.foreign import kept_file
from toolkit.config.reading.located import (
    NOWHERE,
    ConfigNode,
    Diagnostics,
    KeyPath,
)
from toolkit.config.reading.yaml_reader import read_yaml, scalar_kind
from toolkit.errors import ConfigErrors
from toolkit.files.redact import REDACTED, is_secret, redact


def saved_text(
    text: str,
    root: ConfigNode,
    new_name: str | None,
    changed: Sequence[KeyPath] = (),
    *,
    rewrite: bool,
) -> str:
    """YAML with variables unexpanded, the name given by `-n` and other changes in their
    places and secrets redacted.

    `root` is what `text` holds before anything was filled in, with another value at each
    path of `changed`. rewrite: it is not YAML, or not all of it.
    """
    if reader := kept_file(root):
        named = reader.renamed(root, new_name) if new_name is not None else root
        return redact(
            _dump(named, None) if rewrite or new_name else _redacted(text, root)
        )
    if new_name is not None:
        node = ConfigNode(new_name, (), NOWHERE, NOWHERE)
        root, path = put(root, NAME, node)
        changed = [*changed, path]
    if rewrite:
        return redact(_dump(root, new_name))
    edited = _with_values(text, root, changed) if changed else _redacted(text, root)
    return redact(_dump(root, new_name) if edited is None else edited)


def _with_values(text: str, root: ConfigNode, changed: Sequence[KeyPath]) -> str | None:
    """The text with the values that `root` has at these paths, and without secrets.
    None where the edits would not give that: a value that an alias shares."""
    try:
        for path in dict.fromkeys(changed):
            node, missing = read_yaml(text, Diagnostics("")).find(path)
            value = _inline(root.find(path)[0])
            for key in reversed(missing[1:] if node.value else missing):
                value = f"{{{key}: {value}}}"
            edit = (*node.span, value)
            if missing and node.value:
                edit = _added(text, node, str(missing[0]), value)
            text = _edit(text, [edit])
        edited = read_yaml(text, Diagnostics(""))
    except ConfigErrors:
        return None
    return _redacted(text, edited) if edited.data() == root.data() else None


def _redacted(text: str, root: ConfigNode) -> str:
    return _edit(text, [(*node.span, REDACTED) for node in secret_scalars(root)])


def job_text(
    root: ConfigNode,
    name: str,
    processes: Sequence[ConfigNode],
    source: str,
    warnings: Sequence[str],
) -> str:
    """The YAML of a job that was made of another program's file, each line with where
    it came from.

    root, name: of the job. processes: as they were checked, under our names. source:
    the file. warnings: messages about the file.
    """
    lines = [
        f"# Made from {source}. Behind each value: the file, the line and the key that it came from."
    ]
    lines += [f"# {line}" for warning in warnings for line in warning.splitlines()]
    config = root.value["config"].value
    inside = {
        "name": replace(config["name"], value=name),
        "process": replace(root, value=[*processes]),
    }
    tree = {
        "job": root.value["job"],
        "config": replace(root, value=inside),
        **({"meta": root.value["meta"]} if "meta" in root.value else {}),
    }
    return redact(
        "\n".join([*lines, *_lines(replace(root, value=tree), source, 0)]) + "\n"
    )


def _lines(node: ConfigNode, source: str, indent: int) -> Iterator[str]:
    """A mapping as the lines of a block."""
    for key, child in node.value.items():
        value = child.value
        start = f"{'  ' * indent}{key}:"
        items = value if isinstance(value, list) else []
        if isinstance(value, dict) and value:
            yield start
            yield from _lines(child, source, indent + 1)
        elif any(isinstance(item.value, dict) for item in items):
            yield start
            for item in items:
                first, *more = _lines(item, source, indent + 2)
                yield f"{'  ' * (indent + 1)}- {first.lstrip()}"
                yield from more
        else:
            yield f"{start} {_inline(child)}{_origin(child, source)}"


def _as_written(scalar: ConfigNode) -> Any:
    """A value with `${VAR}` as it stood in the file, without secrets."""
    return (
        REDACTED
        if is_secret(_key_of(scalar), scalar.value)
        else scalar.written or scalar.value
    )


def _inline(node: ConfigNode) -> str:
    data = node.data(_as_written)
    text: str = yaml.dump(
        data,
        Dumper=_Dumper,
        default_flow_style=True,
        allow_unicode=True,
        width=10**6,
        sort_keys=False,
    )
    return text.removesuffix("...\n").strip()


def _origin(node: ConfigNode, source: str) -> str:
    """A comment: file, line and key; whose default it is; nothing for what the file
    does not have."""
    at = node.key_at
    key = _key_of(node)
    if not key:
        return ""
    return f"  # {f'{at.file or source}:{at.line}' if at.line else at.file} {key}"


def _added(
    text: str, mapping: ConfigNode, key: str, value: str
) -> tuple[int, int, str]:
    """The edit that gives a mapping a further key."""
    start = mapping.span[0]
    if text[start] == "{":
        return start + 1, start + 1, f"{key}: {value}, "
    return start, start, f"{key}: {value}\n" + " " * (mapping.value_at.column - 1)


def _edit(text: str, edits: list[tuple[int, int, str]]) -> str:
    for start, end, new in sorted(set(edits), reverse=True):
        # The end of an empty or a block scalar (| or >) lies behind white space that
        # must stay.
        white_space = text[start:end][len(text[start:end].rstrip()) :]
        space = " " if start and text[start - 1] == ":" else ""
        text = text[:start] + space + new + white_space + text[end:]
    return text


def secret_scalars(root: ConfigNode) -> Iterator[ConfigNode]:
    """The scalars that a secret's key holds, directly or in a list."""
    scalars = (node for node in root.walk() if not isinstance(node.value, dict | list))
    return (node for node in scalars if is_secret(_key_of(node), node.value))


def _key_of(node: ConfigNode) -> str:
    return next((part for part in reversed(node.path) if isinstance(part, str)), "")


class _Dumper(yaml.SafeDumper):
    """Quotes what a reader of YAML 1.1 or of 1.2 would take for something other than
    text."""

    def resolve(self, kind: type, value: str, implicit: tuple[bool, bool]) -> str:
        tag: str = super().resolve(kind, value, implicit)
        if (
            kind is yaml.ScalarNode
            and implicit[0]
            and tag.endswith(":str")
            and scalar_kind(value) != "str"
        ):
            return f"tag:yaml.org,2002:{scalar_kind(value)}"
        return tag


def _dump(root: ConfigNode, new_name: str | None) -> str:
    def scalar(node: ConfigNode) -> Any:
        return REDACTED if is_secret(_key_of(node), node.value) else node.value

    data = root.data(scalar)
    if new_name is not None:
        data["config"] = {"name": new_name} | data["config"] | {"name": new_name}
    return as_yaml(data)


def as_yaml(data: Any) -> str:
    """Plain data as a block of YAML that ends in a line break. Keys keep their order,
    and long lines are not wrapped.

    >>> print(as_yaml({"steps": 2000, "lr": 0.5}), end="")
    steps: 2000
    lr: 0.5
    """
    text: str = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6
    )
    return text
