"""The table of other programs' names as the core asks for it (`toolkit.config.foreign.ForeignKeys`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from pydantic import BaseModel

from extensions.compat.names import NAMES, Names
from extensions.compat.shapes import SHAPES
from toolkit.config.base import Entries, StrictModel
from toolkit.config.foreign import ForeignName
from toolkit.config.located import Diagnostics
from toolkit.config.normalise import places_of_keys
from toolkit.extension import discover

OPTIONS: Names = {
    key: row for (program, group), rows in NAMES.items() if program == "musubi" and group != "flags"
    for key, row in rows.items()
}  # fmt: skip
"""The options of musubi-tuner, whatever group reads them."""

PROGRAMS = {
    "musubi-tuner's": OPTIONS,
    "kohya's": NAMES["kohya", ""],
    "diffusers'": NAMES["diffusers", ""],
}
"""Whose keys and flags are known wherever they stand, in the order in which they are asked."""

_FLAGS = NAMES["musubi", "flags"]


class TableOfNames:
    """Answers from the table."""

    def rows(self, section: type[BaseModel]) -> Mapping[str, ForeignName]:
        return _rows(section.foreign_groups) if issubclass(section, StrictModel) else {}

    def reshape(self, section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
        for group in section.foreign_groups if issubclass(section, StrictModel) else ():
            if group in SHAPES:
                entries = SHAPES[group](section, entries, diagnostics)
        return entries

    def idle(self, key: str, is_blank: bool = False) -> str:
        row = OPTIONS.get(key)
        asks_for_nothing = row and not (row.ours or row.tool) and (row.how == "idle" or is_blank)
        return row.says if row and asks_for_nothing else ""

    def hint(self, key: str) -> str:
        whose, row = known_name(key)
        if row is None:
            return ""
        if not (row.ours or row.tool):
            return f"{whose} {key!r} is not supported: {row.says}."
        sections = [place.removesuffix(f".{key}") for place in row.ours if place.endswith(f".{key}")]
        if sections:
            return f"It belongs in {' or '.join(map(repr, sections))}."
        ours = " and ".join(map(repr, row.ours))
        command = f"'run.py {row.tool}'" if row.tool else ""
        return f"{whose} {key!r} is {' or '.join(filter(None, (ours, command)))} here."

    def named(self, place: str) -> Iterable[str]:
        return [key for key, row in OPTIONS.items() if place in row.ours]

    def own_flag(self, word: str, keys: Iterable[str]) -> str:
        name, equals, value = word.partition("=")
        row = _FLAGS.get(_key(name))
        is_ours = row and row.how == "is" and row.field in keys and _key(name) not in keys
        return f"--{row.field}{equals}{value}" if row and is_ours else word

    def flag_remedy(self, word: str) -> str:
        row = _FLAGS.get(_key(word.partition("=")[0]))
        return row.says if row else ""


def known_name(key: str) -> tuple[str, ForeignName | None]:
    """Whose key it is, and what it is here; ("", None) where it is of no program."""
    return next(((whose, rows[key]) for whose, rows in PROGRAMS.items() if key in rows), ("", None))


def not_a_flag(flag: str) -> str:
    """What to do with an unknown flag beside a job that is a key of a job, or another program's; empty for others."""
    key = flag.rpartition(".")[2].replace("-", "_")
    model = discover().find_config("sd_trainer")
    assert model is not None  # a process of this program
    found = places_of_keys(model, KEYS).get(key, [])
    nearest = min((place.count(".") + bool(place) for place in found), default=0)
    keys = [f"{place}.{key}".removeprefix(".") for place in found if place.count(".") + bool(place) == nearest][:3]
    whose, row = known_name(key)
    if row is None or key in (ours.rpartition(".")[2] for ours in row.ours):
        return f"It is a key of a job: write {' or '.join(map(repr, keys))} into the job." if keys else ""
    written = f"write {' and '.join(map(repr, row.ours))} into a job" if row.ours else ""
    if PROGRAMS[whose] is not OPTIONS:
        return f"It is {whose} flag, whose commands are not read: {written or row.says}."
    return f"It is {whose} flag: give its whole command in quotes to 'run.py import'{written and f', or {written}'}."


@cache
def _rows(groups: tuple[str, ...]) -> Names:
    """The rows of a section composed of these groups; of two programs with one name the first has it."""
    found: Names = {}
    for wanted in groups:
        for (_, group), rows in NAMES.items():
            if group == wanted:
                found = found | {key: row for key, row in rows.items() if key not in found}
    return found


def _key(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_") if flag.startswith("--") else ""


KEYS = TableOfNames()
