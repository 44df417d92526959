"""The table of other programs' names, names.toml, as rows; its head says what each
column means and how a name is added.

It is read once, at the first question: a job with our keys only, `run.py --help` and
most tools never ask. The rewriter (`keys.py`), the hints of unknown keys, the readers
of musubi-tuner, the pages and the tests ask.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from toolkit.config.reading.foreign import NO_DEFAULT, ForeignName

Names = dict[str, ForeignName]
"""Name in another program -> what it is here."""

MUSUBI_TUNER = "musubi-tuner"
NO_SECTION = "no_section"
FLAGS = "flags"

PLACES = {
    **dict.fromkeys(("TrainingSection", "ModelSection"), ""),
    **dict.fromkeys(("OptimizerConfig", "OptimizationConfig", "TrainConfig"), "train"),
    **{
        f"{place.title()}Config": place
        for place in ("model", "network", "validation", "sample", "save", "logging")
    },
    "ModelKwargs": "model.model_kwargs",
    "NetworkKwargs": "network.network_kwargs",
    "DatasetConfig": "datasets[]",
    "StopWhenConfig": "stop_when",
    "SampleItem": "sample.samples[]",
}
"""Class of a section -> its place in a process."""


@cache
def names() -> dict[tuple[str, str], Names]:
    """(program, class of the section, NO_SECTION or FLAGS) -> its rows."""
    text = Path(__file__).with_name("names.toml").read_text(encoding="utf-8")
    return {
        (program, section): {
            key: row_of(columns)
            for keys, columns in rows.items()
            for key in keys.split()
        }
        for program, sections in tomllib.loads(text).items()
        for section, rows in sections.items()
    }


def row_of(columns: Mapping[str, Any]) -> ForeignName:
    """A row of names.toml: the first column says what becomes of a
    name."""
    how: Any = next(iter(columns))
    value = columns[how]
    has_reason = how in ("not_needed", "no_counterpart")
    is_named = how in ("renamed_to", "converted_to", "use_instead")
    return ForeignName(
        how,
        tuple((value if is_named else columns.get("nearest", "")).split()),
        value if has_reason else columns.get("note", ""),
        passes=tuple(value) if how == "only_accepts" else (),
        tool=columns.get("command", ""),
        default=columns.get("left_out_there", NO_DEFAULT),
    )


@cache
def options() -> dict[str, tuple[str, ForeignName]]:
    """Option of musubi-tuner -> the class of the section that accepts it unchanged, or
    "", and its row."""
    return {
        key: ("" if section == NO_SECTION else section, row)
        for (program, section), rows in names().items()
        if program == MUSUBI_TUNER and section != FLAGS
        for key, row in rows.items()
    }


def tool_flags() -> Names:
    """Flags of musubi-tuner's scripts on the commands of our tools."""
    return names()[MUSUBI_TUNER, FLAGS]


@cache
def rows_of(section: type[BaseModel]) -> Names:
    """The names that may be written in a section; of two programs with one name the
    first has it."""
    found: Names = {}
    for cls in reversed(section.__mro__):
        if cls.__name__ in PLACES:  # most tools have none: the table is not read
            for (_, class_name), rows in names().items():
                if class_name == cls.__name__:
                    found = found | rows | found
    return found
