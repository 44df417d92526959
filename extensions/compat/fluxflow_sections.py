"""The sections of FluxFlow's guide as pydantic models, made from the table of its
keys.

The models check types and ranges, and say where a key belongs that is in the wrong
section. They do not convert a value into a key of the job: `fluxflow`, which validates
each section with them, does that.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    create_model,
)

from extensions.compat.fluxflow_keys import DATA, Key, Kind, keys, names_in
from toolkit.config.reading.field_types import value_error

DATASETS = "datasets"
"""Stands for an entry of `training.pipeline.datasets`."""

_OF_DATASETS: dict[str, Kind] = {
    "type": "text",
    "image_folder": "text",
    "default": "switch",
}
"""Its keys besides those of `data`."""


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


@cache
def section_of(place: str) -> type[BaseModel]:
    """The model of a section, of a step or of an entry of the datasets; each key may be
    left out."""
    kinds = {
        name: _annotation(keys()[name])
        for name in names_in(DATA if place == DATASETS else place)
    }
    if place == DATASETS:
        kinds |= {name: _KINDS[kind] for name, kind in _OF_DATASETS.items()}
    fields: dict[str, Any] = {name: (kind | None, None) for name, kind in kinds.items()}
    return create_model(place, __base__=_Section, **fields)


def kind_of(key: str) -> Kind:
    """What a key holds."""
    return keys()[key].kind if key in keys() else _OF_DATASETS[key]


def _annotation(key: Key) -> Any:
    bounds = {"ge": key.least, "le": key.most}
    given: dict[str, Any] = {
        name: bound for name, bound in bounds.items() if math.isfinite(bound)
    }
    return Annotated[_KINDS[key.kind], Field(**given)]


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise value_error("a switch is not a number")
    return value


def _switch(value: Any) -> Any:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        raise value_error("write it without quotes")
    return value


def _texts(value: Any) -> Any:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise value_error("give texts, each in quotes")
    return value


def _sizes(value: Any) -> list[tuple[int, int]]:
    items = value if isinstance(value, list) else [value]
    sizes = []
    for item in items:
        size = _sides(item)
        if size is None:
            raise value_error("give sizes in pixels, such as 512 or [768, 512]")
        sizes.append(size)
    return sizes


def _sides(value: Any) -> tuple[int, int] | None:
    """Width and height: of 512, [768, 512] or 768x512; None for anything else."""
    parts = value if isinstance(value, list) else str(value).lower().split("x")
    sides = [str(part).strip() for part in parts]
    if len(sides) not in (1, 2) or not all(
        side.isdecimal() and 32 <= int(side) <= 16_384 for side in sides
    ):
        return None
    return int(sides[0]), int(sides[-1])


_KINDS: dict[Kind, Any] = {
    "switch": Annotated[StrictBool, BeforeValidator(_switch)],
    "whole": Annotated[int, BeforeValidator(_number)],
    "number": Annotated[float, BeforeValidator(_number)],
    "text": str,
    "texts": Annotated[Any, BeforeValidator(_texts)],
    "names": Annotated[Any, BeforeValidator(_texts)],
    "sizes": Annotated[Any, BeforeValidator(_sizes)],
    "mapping": dict[str, Any],
}
