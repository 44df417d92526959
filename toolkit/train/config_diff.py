"""The changes of a job since its checkpoint was written, and whether a resume allows
them.

Pure; imports no torch. Keys are dotted paths of the typed section, as in
`datasets[0].folder_path`. Its section says what a change of each key means
(`StrictModel.on_resume`).

Called by `resumption`, and by `jobs.process.trainer`, which compares the ranks of a
run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from toolkit.config.reading.base import ALL_OTHERS, ChangeKind, StrictModel
from toolkit.config.reading.normalise import item_annotation, section_model
from toolkit.config.reading.removed import computes_the_same, removed_at, row_above


@dataclass(frozen=True)
class ConfigChange:
    """One key with its old and new value.

    >>> print(ConfigChange("train.lr", 0.0001, 0.0002, "changes the result"))
    train.lr: 0.0001 -> 0.0002
    """

    key: str
    old: Any
    new: Any
    kind: ChangeKind

    @property
    def has_left(self) -> bool:
        """Whether this version of the program has no such key."""
        return bool(row_above(self.key))

    def __str__(self) -> str:
        gone = removed_at(self.key)
        return f"{self.key}: {gone or f'{self.old!r} -> {self.new!r}'}"


REVISION = 3
"""Recorded with every checkpoint; raised when the same job computes something else.
Other states are refused."""


def diff_configs(
    section: type[BaseModel],
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
) -> list[ConfigChange]:
    """Every key whose value differs, sorted.

    section: its class. old, new: the section as plain data (`model_dump(mode="json")`).
    given: the part of `new` that the job sets itself. A key that `old` lacks, because
    the program did not have it yet, counts only where the job sets it; one that it has
    no more (removed.toml), only where it computed something else.
    """
    before = dict(flatten_config(old))
    after = dict(flatten_config(new))
    gone = {key: row for key in before if (row := row_above(key))}
    for key, row in gone.items():
        value = before.pop(key)
        if not computes_the_same(row, value):
            before.setdefault(row, value)
    if given is not None:
        known = before.keys() | dict(flatten_config(given)).keys()
        after = {key: value for key, value in after.items() if key in known}
    changes = []
    for key in sorted(before.keys() | after.keys()):
        old_value = before.get(key)
        new_value = after.get(key)
        if old_value != new_value:
            kind = _kind(section, key, new)
            changes.append(ConfigChange(key, old_value, new_value, kind))
    return changes


def _kind(section: type[BaseModel] | None, key: str, values: Any) -> ChangeKind:
    """The rule of the innermost section on the path of the key that has one."""
    kind: ChangeKind = "changes the result"
    for part in key.split("."):
        if section is None:
            break
        name = part.partition("[")[0]
        rules = section.on_resume if issubclass(section, StrictModel) else {}
        rule = rules.get(name, rules.get(ALL_OTHERS, kind))
        kind = rule(values or {}) if callable(rule) else rule
        values = values.get(name) if isinstance(values, Mapping) else None
        if index := part.removeprefix(name).strip("[]"):
            values = (
                values[int(index)]
                if isinstance(values, list) and int(index) < len(values)
                else None
            )
        field = section.model_fields.get(name)
        annotation = field.annotation if field else None
        section = section_model(
            item_annotation(annotation) if "[" in part else annotation
        )
    return kind


def flatten_config(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of plain data with their values.

    Lists are entered only where they have sections in them. An empty section is a
    value; a tuple becomes a list.

    >>> job = {"train": {"lr": 0.5, "betas": (0.9, 0.99)}, "datasets": [{"repeats": 2}]}
    >>> for key, value in flatten_config(job):
    ...     print(key, value)
    train.lr 0.5
    train.betas [0.9, 0.99]
    datasets[0].repeats 2
    """
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from flatten_config(child, f"{path}.{key}" if path else str(key))
    elif _has_sections(value):
        for index, child in enumerate(value):
            yield from flatten_config(child, f"{path}[{index}]")
    else:
        yield path, list(value) if isinstance(value, tuple) else value


def _has_sections(value: Any) -> bool:
    """Whether a value is a list that has sections in it."""
    if not isinstance(value, list | tuple):
        return False
    return any(isinstance(child, Mapping) for child in value)
