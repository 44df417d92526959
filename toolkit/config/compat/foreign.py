"""`ForeignNames`: what a section takes, or refuses, of the keys of other programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from toolkit.config.diagnostics import Diagnostics
from toolkit.config.located import ConfigNode

Entries = dict[str, ConfigNode]
"""Key -> value of one section."""

Reshape = Callable[[type[BaseModel], Entries, Diagnostics], Entries]


@dataclass(frozen=True)
class ForeignNames:
    """Keys of other programs in one section. None of them is one of the section's own."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of fields: old name -> field."""

    shapes: Mapping[str, str] = field(default_factory=dict)
    """Names that are no fields but that `reshape` turns into fields -> what they stand for."""

    no_effect: Mapping[str, str] = field(default_factory=dict)
    """Names that are accepted with a warning -> why they do nothing here."""

    refused_when_on: Mapping[str, str] = field(default_factory=dict)
    """Switches of `ignored` that are refused unless they are false -> why, and the remedy."""

    unsupported: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Names that are known and refused -> the values that ask for nothing and therefore pass."""

    reshapes: tuple[Reshape, ...] = ()
    """Turn `shapes` of a section into its fields, one after the other, before aliases are folded. They get known and
    given keys only."""

    @classmethod
    def combined(cls, parts: Iterable[ForeignNames]) -> ForeignNames:
        """Those of a section that is composed of others, of which each has its own."""
        parts = tuple(parts)

        def merged(table: str) -> dict[str, Any]:
            return {name: said for part in parts for name, said in getattr(part, table).items()}

        tables = ("aliases", "shapes", "no_effect", "refused_when_on", "unsupported")
        steps = dict.fromkeys(step for part in parts for step in part.reshapes)
        return cls(**{table: merged(table) for table in tables}, reshapes=tuple(steps))

    def reshape(self, section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
        """The entries of a section with its own fields only."""
        for step in self.reshapes:
            entries = step(section, entries, diagnostics)
        return entries

    def names(self) -> set[str]:
        """All of them."""
        return {*self.aliases, *self.shapes, *self.no_effect, *self.unsupported}


def refuse(names: str, *harmless: Any) -> dict[str, tuple[Any, ...]]:
    """Rows of `unsupported`: names separated by spaces, all with the same harmless values."""
    return dict.fromkeys(names.split(), harmless)
