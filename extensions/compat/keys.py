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

OPTIONS: Names = {
    key: row for (program, group), rows in NAMES.items() if program == "musubi" and group != "flags"
    for key, row in rows.items()
}  # fmt: skip
"""The options of musubi-tuner, whatever group reads them."""

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
        row = OPTIONS.get(key)
        if row is None:
            return ""
        if not (row.ours or row.tool):
            return f"musubi-tuner's {key!r} is not supported: {row.says}."
        sections = [place.removesuffix(f".{key}") for place in row.ours if place.endswith(f".{key}")]
        if sections:
            return f"It belongs in {' or '.join(map(repr, sections))}."
        ours = " and ".join(map(repr, row.ours))
        command = f"'run.py {row.tool}'" if row.tool else ""
        return f"musubi-tuner's {key!r} is {' or '.join(filter(None, (ours, command)))} here."

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
