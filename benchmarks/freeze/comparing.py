"""Which facts of two checkouts are equal, under a table of what is meant to differ."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.freeze.facts import KINDS, Facts, Value

SHOWN = 6
"""Differences of one job and kind that are printed; `--all` prints the others too."""


@dataclass(frozen=True)
class Table:
    """What is meant to differ."""

    renames: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Kind, or `values` -> regular expression -> replacement."""

    allowed: Mapping[str, str] = field(default_factory=dict)
    """Regular expression on `<job>/<file>: <field>` -> reason."""

    @classmethod
    def read(cls, path: Path | None) -> Table:
        """Raises SystemExit for a key that means nothing."""
        given = json.loads(path.read_text(encoding="utf-8")) if path else {}
        allowed = given.pop("allowed", {})
        if unknown := given.keys() - {*KINDS, "values"}:
            raise SystemExit(f"{path}: unknown: {', '.join(sorted(unknown))}")
        return cls(given, allowed)

    def renamed(self, facts: Facts) -> Facts:
        """BEFORE's facts under the names and texts of AFTER."""
        return {
            (
                kind,
                self._sub("files", file),
                self._sub(kind, key) if kind != "files" else key,
            ): self._value(value)
            for (kind, file, key), value in facts.items()
        }

    def _value(self, value: Value) -> Value:
        return self._sub("values", value) if isinstance(value, str) else value

    def _sub(self, kind: str, text: str) -> str:
        for pattern, replacement in self.renames.get(kind, {}).items():
            text = re.sub(pattern, replacement, text)
        return text

    def reason(self, place: str) -> str | None:
        """Why a difference is allowed."""
        return next(
            (
                reason
                for pattern, reason in self.allowed.items()
                if re.search(pattern, place)
            ),
            None,
        )


@dataclass(frozen=True)
class Difference:
    """One field that is not the same."""

    kind: str
    place: str
    """`<job>/<file>: <field>`"""

    what: str
    how: str
    """`differs`, `missing` or `added`."""

    reason: str | None = None
    """Why it is allowed; None: it is not."""

    @property
    def counts(self) -> bool:
        """Whether it makes the comparison fail: what is added does not."""
        return self.how != "added" and self.reason is None


def compare(
    job: str, before: Facts, after: Facts, table: Table
) -> tuple[Counter[str], list[Difference]]:
    """Equal fields by kind, and what is not equal."""
    before = table.renamed(before)
    equal: Counter[str] = Counter()
    found = []
    for kind, file, key in sorted(before.keys() | after.keys()):
        fact, place = (kind, file, key), f"{job}/{file}: {key}"
        if fact not in after:
            found.append(
                Difference(
                    kind, place, shown(before[fact]), "missing", table.reason(place)
                )
            )
        elif fact not in before:
            found.append(
                Difference(
                    kind, place, shown(after[fact]), "added", table.reason(place)
                )
            )
        elif same(before[fact], after[fact]):
            equal[kind] += 1
        else:
            what = difference(before[fact], after[fact])
            found.append(Difference(kind, place, what, "differs", table.reason(place)))
    return equal, found


def same(one: Value, other: Value) -> bool:
    """Bit for bit: 0.0 is not -0.0, 1 is not 1.0, and NaN is itself."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and _bytes(one) == _bytes(other)
        )
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and bool((one == other).all())
    return type(one) is type(other) and repr(one) == repr(other)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def difference(one: Value, other: Value) -> str:
    """How two values differ."""
    if (
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and (one.dtype, one.shape) == (other.dtype, other.shape)
    ):
        apart = (one.double() - other.double()).abs()
        return f"{int((apart != 0).sum())} of {apart.numel()} differ, by at most {apart.max().item():.3g}"
    if (
        isinstance(one, np.ndarray)
        and isinstance(other, np.ndarray)
        and one.shape == other.shape
    ):
        apart = np.abs(one.astype(int) - other.astype(int))
        return (
            f"{(apart != 0).mean():.1%} of the values differ, by at most {apart.max()}"
        )
    if (
        isinstance(one, float)
        and isinstance(other, float)
        and math.isfinite(one)
        and one
    ):
        return f"{one!r} -> {other!r} (relative {abs(other - one) / abs(one):.2g})"
    return f"{shown(one)} -> {shown(other)}"


def shown(value: Value) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    text = f"pixels {value.shape}" if isinstance(value, np.ndarray) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


@dataclass
class Outcome:
    """What all comparisons found."""

    table: Table
    show_all: bool = False
    differences: list[Difference] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, job: str, before: Facts, after: Facts) -> None:
        """Compares and prints the rows of a job."""
        equal, found = compare(job, before, after, self.table)
        self.differences += found
        if not equal:
            self.problems.append(f"{job}: nothing is equal")
        for kind in (
            kind
            for kind in KINDS
            if equal[kind] or any(one.kind == kind for one in found)
        ):
            of_kind = [one for one in found if one.kind == kind]
            counts = Counter(
                "allowed" if one.reason and one.how != "added" else one.how
                for one in of_kind
            )
            cells = " ".join(
                f"{counts[how]:>8}"
                for how in ("differs", "missing", "added", "allowed")
            )
            print(f"{job:<18} {kind:<10} {equal[kind]:>7} {cells}", flush=True)

    def render(self) -> str:
        """All that is not equal, the unexpected first, a few of each job and kind."""
        lines = []
        for how in ("differs", "missing", "added"):
            groups: dict[tuple[str, str], list[Difference]] = {}
            for one in self.differences:
                if one.how == how:
                    groups.setdefault(
                        (one.place.partition("/")[0], one.kind), []
                    ).append(one)
            if groups:
                lines.append(
                    {
                        "differs": "DIFFERS",
                        "missing": "MISSING",
                        "added": "added by AFTER",
                    }[how]
                )
            for group in groups.values():
                for one in group if self.show_all else group[:SHOWN]:
                    lines.append(
                        f"  {one.place}: {one.what}"
                        + (f" [allowed: {one.reason}]" if one.reason else "")
                    )
                if not self.show_all and len(group) > SHOWN:
                    job, kind = group[0].place.partition("/")[0], group[0].kind
                    lines.append(f"  ... {len(group) - SHOWN} more of {job}, {kind}")
        return "\n".join([*lines, *self.problems])

    @property
    def failed(self) -> bool:
        return bool(self.problems) or any(one.counts for one in self.differences)
