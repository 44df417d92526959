"""Reference images in slot order: `<key>: one or a list`, or `<key>_1`, `<key>_2`, `<key>_3`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import BeforeValidator, Field

from toolkit.config.diagnostics import Diagnostics
from toolkit.config.field_types import PathStr, as_list, schema_of_list
from toolkit.config.located import ConfigNode

MAX_SLOTS = 3

Slots = Annotated[
    tuple[PathStr, ...], BeforeValidator(as_list), Field(max_length=MAX_SLOTS), schema_of_list({"type": "string"})
]
"""Up to three paths."""


def slot_names(key: str) -> tuple[str, ...]:
    return tuple(f"{key}_{number}" for number in range(1, MAX_SLOTS + 1))


def gather_slots(entries: dict[str, ConfigNode], key: str, diagnostics: Diagnostics) -> None:
    """Replaces `<key>_1..3` by one list under `key`."""
    numbered = [entries.pop(name) for name in slot_names(key) if name in entries]
    if not numbered:
        return
    if key in entries and not entries[key].from_defaults:
        message = f"{key!r} and {numbered[0].path[-1]!r} are both given. Keep one way of writing it."
        diagnostics.error(numbered[0], message, at_key=True)
        return
    entries[key] = replace(numbered[0], value=numbered, plain=False)
