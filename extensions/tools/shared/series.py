"""The numbers of a run as curves, for files of any length.

The steps of a file are put into a limited number of buckets, each with its least and
greatest value, so that no spike is lost. Rows that a file gets at its end are added,
and a part of a curve is read again with finer buckets. Nothing is written or drawn.
Imports no torch.

`diagrams`, `feed` and `run_records` read the curves of a run; the views of the page
(`ui/views`) send them to the browser.
"""

from __future__ import annotations

import math
import re
import threading
import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.files.run_files import METRICS, VALIDATION
from toolkit.files.writing import open_regular
from toolkit.train.run_reader import Row, StepRows, tell_unreadable

MOST_BUCKETS = 2048
"""Buckets of a file, an even number, more than a screen has columns. When all are used,
pairs are merged."""

MOST_RECENT = 2000
"""Rows that are sent as they are to those who watch."""

IN_STEPS = ("step_s", "compile_s")
"""The numbers whose total is the time in steps."""

_MOST_COLUMNS = 200
_NO_NUMBERS = frozenset({"step", "epoch", "samples"})


@dataclass(frozen=True)
class Curve:
    """One number over the steps of a run: a point for each bucket with a value of it.

    Example::

        metrics, validation = series_of(Path("output/my_character"))
        for curve in metrics.update().curves(points=100):
            print(curve.name, curve.steps[-1], curve.mean[-1])
    """

    name: str
    steps: list[int]
    """First step of each bucket."""

    low: list[float]
    high: list[float]
    mean: list[float]


class _Column:
    """One number: count, sum, least and greatest value of each bucket, up to the last
    bucket that has a value."""

    def __init__(self) -> None:
        self.count = array("l")
        self.sum = array("d")
        self.low = array("d")
        self.high = array("d")

    def add(self, bucket: int, value: float) -> None:
        missing = bucket + 1 - len(self.count)
        if missing:
            self.count.extend([0] * missing)
            self.sum.extend([0.0] * missing)
            self.low.extend([math.inf] * missing)
            self.high.extend([-math.inf] * missing)
        self.count[bucket] += 1
        self.sum[bucket] += value
        if value < self.low[bucket]:
            self.low[bucket] = value
        if value > self.high[bucket]:
            self.high[bucket] = value

    def halve(self) -> None:
        """Joins each two buckets into one."""
        for name, join in (("count", sum), ("sum", sum), ("low", min), ("high", max)):
            values = getattr(self, name)
            joined = [join(values[at : at + 2]) for at in range(0, len(values), 2)]
            setattr(self, name, array(values.typecode, joined))

    def cut(self, bucket: int) -> None:
        """Forgets the buckets from one on."""
        for values in (self.count, self.sum, self.low, self.high):
            del values[bucket:]

    def curve(self, name: str, groups: Iterable[tuple[int, slice]]) -> Curve:
        """A point for each group of buckets that has a value. groups: the first step of
        each, and its buckets."""
        curve = Curve(name, [], [], [], [])
        for step, group in groups:
            count = sum(self.count[group])
            if count:
                curve.steps.append(step)
                curve.low.append(min(self.low[group]))
                curve.high.append(max(self.high[group]))
                curve.mean.append(sum(self.sum[group]) / count)
        return curve


class _Buckets:
    """The numbers of rows in buckets of equally many rows."""

    def __init__(self, prefix: str, most: int) -> None:
        """prefix: put before the names of curves that do not begin with it. most:
        buckets, an even number."""
        self._prefix = prefix
        self.most = most
        self.columns: dict[str, _Column] = {}
        self.width = 1
        """Rows of each bucket."""

        self.count = 0
        """Rows of all buckets."""

    def add(self, row: Row) -> None:
        if self.count == self.most * self.width:
            for column in self.columns.values():
                column.halve()
            self.width *= 2
        bucket = self.count // self.width
        self.count += 1
        for name, value in row.items():
            if name in _NO_NUMBERS or not _is_number(value):
                continue
            if name not in self.columns and len(self.columns) < _MOST_COLUMNS:
                self.columns[name] = _Column()
            number = self.columns.get(name)
            if number is not None:
                number.add(bucket, value)

    def cut(self, count: int) -> None:
        """Forgets the bucket of a row, and those after it."""
        bucket = count // self.width
        self.count = bucket * self.width
        for column in self.columns.values():
            column.cut(bucket)

    def curves(
        self, steps: Sequence[int], begin: int, end: int, points: int
    ) -> list[Curve]:
        """The curves that have values in the buckets from one to another. steps: of all
        rows."""
        every = max(1, math.ceil((end - begin) / max(1, points)))
        groups = [
            (steps[at * self.width], slice(at, min(at + every, end)))
            for at in range(begin, end, every)
        ]
        curves = []
        for name, column in self.columns.items():
            if any(column.count[begin:end]):
                full_name = f"{self._prefix}{name.removeprefix(self._prefix)}"
                curves.append(column.curve(full_name, groups))
        return curves


class Series:
    """The numbers of metrics.jsonl or validation.jsonl by step.

    Example::

        series = Series(Path("output/my_character/metrics.jsonl"))
        cursor = series.update().cursor()
        rows = series.update().rows_since(cursor)  # what was appended meanwhile
    """

    def __init__(self, path: Path, prefix: str = "", most: int = MOST_BUCKETS) -> None:
        """prefix, most: as in `_Buckets`."""
        self._path = path
        self._prefix = prefix
        self._lock = threading.Lock()
        self._generation = time.time_ns()
        self._stamp: tuple[int, ...] = ()
        self._last_error = ""
        self._rows = StepRows()
        self._buckets = _Buckets(prefix, most)

    @property
    def last_step(self) -> int:
        """The step of the last row; -1 without rows."""
        return self._rows.steps[-1] if len(self._rows) else -1

    def update(self) -> Series:
        """Reads what was appended, or the whole file if it was replaced. A missing file
        has no rows."""
        with self._lock:
            try:
                stat = self._path.stat()
                stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
                if stamp != self._stamp:
                    self._stamp = stamp
                    self._read()
            except OSError as error:
                message = str(error)
                if self._last_error != message:
                    tell_unreadable(self._path, error)
                    self._last_error = message
                self._stamp = ()
                self._rows = StepRows()
                self._go_back(0)
        return self

    def _read(self) -> None:
        """Adds the rows that follow those read before. A row of an earlier step
        replaces the rows after that step."""
        with open_regular(self._path) as file:
            for index, row in self._rows.read(file):
                if index < self._buckets.count:
                    for earlier_row in self._rows.between(
                        file, self._go_back(index), index
                    ):
                        self._buckets.add(earlier_row)
                self._buckets.add(row)
        self._go_back(len(self._rows))

    def _go_back(self, count: int) -> int:
        """Forgets the rows from an index on, and the rows before it in its bucket.
        Returns how many are left."""
        if count < self._buckets.count:
            self._generation += 1
            self._buckets.cut(count)
        return self._buckets.count

    def cursor(self) -> str:
        """A cursor for `rows_since` behind all current rows."""
        return f"{self._generation}-{self.last_step}"

    def rows_since(self, cursor: str) -> list[Row] | None:
        """The numbers of the steps after a cursor. None: the curves before the cursor
        have changed, or there are too many rows."""
        generation, _, step = cursor.partition("-")
        is_step = re.fullmatch(r"-1|\d{1,18}", step, re.ASCII)
        with self._lock:
            if generation != str(self._generation) or not is_step:
                return None
            begin = bisect_right(self._rows.steps, int(step))
            if len(self._rows) - begin > MOST_RECENT:
                return None
            rows = self._rows_between(begin, len(self._rows))
            return [_numbers_of(row) for row in rows if "step" in row]

    def _rows_between(self, begin: int, end: int) -> list[Row]:
        """The rows of these indices that can still be read."""
        try:
            with open_regular(self._path) as file:
                return list(self._rows.between(file, begin, end))
        except OSError:
            return []

    def last_row(self) -> Row:
        """The row of the last step; empty where there is none."""
        with self._lock:
            count = len(self._rows)
            return (self._rows_between(count - 1, count) or [{}])[0]

    def total(self, *names: str) -> float:
        """The sum of these numbers over all rows; 0 where there is none."""
        with self._lock:
            columns = self._buckets.columns
            return sum(sum(columns[name].sum) for name in names if name in columns)

    def curves(
        self, begin: int = 0, end: int | None = None, points: int = MOST_BUCKETS
    ) -> list[Curve]:
        """The curves of the steps from `begin` to `end`. A curve without a value in
        them is left out. A part with few buckets is read from the file again, with
        finer ones."""
        with self._lock:
            steps = self._rows.steps
            buckets = self._buckets
            width = self._buckets.width
            first = bisect_left(steps, begin)
            after = len(steps) if end is None else bisect_right(steps, end)
            if first >= after:
                return []
            chosen = first // width, math.ceil(after / width)
            if width > 1 and chosen[1] - chosen[0] < min(points, buckets.most) // 2:
                part = _Buckets(self._prefix, max(2, points // 2 * 2))
                for row in self._rows_between(first, after):
                    part.add(row)
                return part.curves(
                    steps[first:after], 0, math.ceil(part.count / part.width), points
                )
            return buckets.curves(steps, *chosen, points)

    def lowest(self, curve: Curve) -> tuple[float, int]:
        """The lowest value of one of the curves, and its step."""
        value = min(curve.low)
        at = curve.low.index(value)
        end = curve.steps[at + 1] - 1 if at + 1 < len(curve.steps) else None
        finest = curve
        for part in self.curves(curve.steps[at], end):
            if part.name == curve.name:
                finest = part
                break
        return value, finest.steps[finest.low.index(min(finest.low))]


def series_of(folder: Path) -> tuple[Series, Series]:
    """The numbers of a run: of its steps, and of its validation."""
    return (
        Series(folder / METRICS),
        Series(folder / VALIDATION, "validation/"),
    )


def _numbers_of(row: Row) -> Row:
    return {name: value for name, value in row.items() if _is_number(value)}


def _is_number(value: object) -> bool:
    """Whether a value is a number that is not infinite, NaN, or an integer beyond all
    floats."""
    return type(value) in (int, float) and abs(value) < 1e300  # type: ignore[arg-type]  # a number by now
