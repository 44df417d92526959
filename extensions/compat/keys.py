"""The table of other programs' names as the core asks for it
(`toolkit.config.reading.foreign.ForeignKeys`), and the pass that rewrites a job with
some of them in our keys.

It renames keys and moves them to their places. A value that has another form is
converted by `shapes`, and the table itself is `names`. The core finds `TableOfNames`
through `toolkit.registry`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from pydantic import BaseModel

from extensions.compat.names import (
    NO_SECTION,
    Names,
    names,
    options,
    rows_of,
    tool_flags,
)
from extensions.compat.shapes import SHAPES
from toolkit.config.reading.base import Entries
from toolkit.config.reading.foreign import ForeignKeys, ForeignName, Noted
from toolkit.config.reading.located import (
    ConfigNode,
    Diagnostics,
    KeyPath,
    dotted,
    general,
    show,
)
from toolkit.config.reading.normalise import (
    item_annotation,
    merge_aliases,
    nearest,
    places_of_keys,
    section_model,
)
from toolkit.extension import discover


@cache
def programs() -> dict[str, Names]:
    """Whose keys and flags are known wherever they stand, in the order in which they
    are asked. musubi-tuner's are known whatever section reads them."""
    return {
        "musubi-tuner's": {key: row for key, (_, row) in options().items()},
        "kohya's": names()["kohya", NO_SECTION],
        "diffusers'": names()["diffusers", NO_SECTION],
    }


class TableOfNames(ForeignKeys):
    """Answers from the table.

    >>> TableOfNames().hint("sage_attn")
    "musubi-tuner's ..."
    """

    def rewritten(
        self,
        model: type[BaseModel],
        node: ConfigNode,
        diagnostics: Diagnostics,
        known: Noted,
    ) -> ConfigNode:
        rewriter = _Rewriter(diagnostics, known)
        rewritten = rewriter.value(model, node)
        tell_idle(rewriter.idle, diagnostics)
        return rewritten

    def rows(self, section: type[BaseModel]) -> Mapping[str, ForeignName]:
        return rows_of(section)

    def hint(self, key: str) -> str:
        whose, row = known_name(key)
        if row is None:
            return ""
        if not (row.ours or row.tool):
            return f"{whose} {key!r} is not supported: {row.says}."
        parted = [place.rpartition(".") for place in row.ours]
        sections = [
            repr(section) for section, _, name in parted if section and name == key
        ]
        if sections:
            return f"It belongs in {' or '.join(sections)}."
        ours = " and ".join(map(repr, row.ours))
        command = row.tool and f"'run.py {row.tool}'"
        return f"{whose} {key!r} is {' or '.join(filter(None, (ours, command)))} here."

    def own_flag(self, word: str, keys: Iterable[str]) -> str:
        name, equals, value = word.partition("=")
        theirs = _key(name)
        row = tool_flags().get(theirs) if theirs and theirs not in keys else None
        if row and row.how == "renamed_to" and row.field in keys:
            return f"--{row.field}{equals}{value}"
        return word

    def flag_remedy(self, word: str) -> str:
        row = tool_flags().get(_key(word.partition("=")[0]))
        return row.says if row else ""


def known_name(key: str) -> tuple[str, ForeignName | None]:
    """Whose key it is, and what it is here; ("", None) where it is of no program."""
    for whose, rows in programs().items():
        if key in rows:
            return whose, rows[key]
    return "", None


def not_a_flag(flag: str) -> str:
    """What to do with an unknown flag beside a job that is a key of a job, or another
    program's; empty for others."""
    key = flag.rpartition(".")[2].replace("-", "_")
    model = discover().find_config("sd_trainer")
    assert model is not None  # a process of this program
    sections = nearest(places_of_keys(model, KEYS).get(key, []))
    places = [f"{section}.{key}".removeprefix(".") for section in sections]
    if key == "seed":  # of the samples; others call the one of the training so
        places = ["training_seed", *places]
    named = " or ".join(f"'--set {at.replace('[]', '[0]')}=VALUE'" for at in places)
    return f"It is a key of a job: write {named}." if named else KEYS.hint(key)


MOST_REASONS = 3
"""With more lines about keys without effect in a process, one gives the names alone."""


def tell_idle(idle: list[tuple[ConfigNode, str]], diagnostics: Diagnostics) -> None:
    """Warns of the keys without effect, each with its reason: of many in one line, so
    that what matters is seen."""
    alike: dict[tuple[KeyPath, str], list[ConfigNode]] = {}
    idle.sort(key=lambda one: one[0].key_at)
    for node, reason in idle:
        alike.setdefault((node.path[:-1], reason), []).append(node)
    if len(alike) > MOST_REASONS:
        paths = [node.path for node, _ in idle]
        keys = ", ".join(dict.fromkeys(general(path) or dotted(path) for path in paths))
        message = f"{len(idle)} keys have no effect: {keys}. docs/config.md says why."
        diagnostics.warn(idle[0][0], message)
        return
    for (_, reason), (first, *others) in alike.items():
        names = ", ".join(dict.fromkeys(str(node.path[-1]) for node in others))
        same_for = f" (same for {names})" if names else ""
        diagnostics.warn(first, f"has no effect{reason}{same_for}.")


class _Rewriter:
    """Rewrites the sections of a process, each before those in it: keys go from one to
    another."""

    def __init__(self, diagnostics: Diagnostics, known: Noted) -> None:
        self.diagnostics = diagnostics
        self.known = known
        self.idle: list[tuple[ConfigNode, str]] = []
        """Keys without effect, each with the reason."""

    def value(self, annotation: Any, node: ConfigNode) -> ConfigNode:
        """A value with the sections in it rewritten. annotation: of its field, or the
        section's model."""
        if isinstance(node.value, list):
            inner = item_annotation(annotation)
            return replace(node, value=[self.value(inner, item) for item in node.value])
        model = section_model(annotation)
        if model is None or not isinstance(node.value, dict):
            return node
        entries = self.section(model, node)
        for key in entries.keys() & model.model_fields.keys():
            entries[key] = self.value(model.model_fields[key].annotation, entries[key])
        return replace(node, value=entries)

    def section(self, model: type[BaseModel], node: ConfigNode) -> Entries:
        """The entries of a section in our keys; those that no program has stay, and
        those without a value."""
        rows = rows_of(model)
        fields = model.model_fields
        given: Entries = {}
        blank: Entries = {}
        for key, child in node.value.items():
            row = rows.get(key)
            if row is None and key not in fields:
                row = _idle_anywhere(key, child.is_blank)
            if row is None:
                (blank if child.is_blank else given)[key] = child
                continue
            self.known(child)
            if child.is_blank:  # the section says what is taken instead
                ours = [place.rpartition(".")[2] for place in row.ours]
                optional = [
                    name
                    for name in ours
                    if name in fields and not fields[name].is_required()
                ]
                blank = dict.fromkeys(optional[:1], child) | blank
            elif self.is_supported(row, child):
                given[key] = child
        for cls in reversed(model.__mro__):
            shape = SHAPES.get(cls.__name__)
            if shape:
                given = shape(model, given, self.diagnostics)
        for old, row in rows.items():
            if row.how == "renamed_to" and old in given:
                given[row.field] = merge_aliases(
                    given.get(row.field), given.pop(old), self.diagnostics
                )
        return blank | given

    def is_supported(self, row: ForeignName, child: ConfigNode) -> bool:
        """False for names that do nothing here (one warning) and for those not built
        yet (an error)."""
        value = child.data()
        if row.how == "not_needed":
            self.idle.append((child, f": {row.says}"))
        elif row.how == "only_accepts" and value in row.passes:
            self.idle.append((child, " at this value"))
        elif row.how == "only_accepts" and value not in ([], {}):
            ours = " and ".join(map(repr, row.ours))
            nearest = f"The nearest here is {ours}" if ours else "Leave this key out"
            says = f": {row.says}" if row.says else ""
            self.diagnostics.error(
                child, f"{show(child)} is not supported yet. {nearest}{says}."
            )
        return row.how in ("renamed_to", "converted_to")


def _idle_anywhere(key: str, is_blank: bool) -> ForeignName | None:
    """The row of a key that has no effect wherever it stands."""
    _, row = options().get(key, ("", None))
    if row is None or row.ours or row.tool:
        return None
    return row if row.how == "not_needed" or is_blank else None


def _key(flag: str) -> str:
    return flag[2:].replace("-", "_") if flag.startswith("--") else ""


KEYS = TableOfNames()
