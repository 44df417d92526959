"""The numbers of a run as curves, for files of any length: at most so many buckets of steps, each with the least and
greatest value, so that no spike is lost. What a file gets at its end is added; nothing is read twice."""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from extensions.tools.ui.state import whole
from toolkit.files.writing import open_regular
from toolkit.train.run_reader import digest_before, row_of, step_of_row

MOST_BUCKETS = 2048
"""Buckets of a file, an even number, more than a screen has columns. When all are used, pairs are merged."""

MOST_RECENT = 2000
"""Rows that are kept as they are, for those who watch."""

SPARK_POINTS = 32
"""Points of a sparkline."""

_LONGEST_LINE = 65_536
_MOST_COLUMNS = 200
Curves = tuple[list[int], dict[str, dict[str, list[float | None]]]]
"""First step of each bucket; name -> `low`, `high` and `mean` of each bucket, None where it has no value."""

_NO_NUMBERS = frozenset({"step", "epoch", "samples"})


class _Column:
    """One number: count, sum, least and greatest of each bucket; `pending` are the values of the last one."""

    def __init__(self, buckets: int) -> None:
        self.count, self.sum = array("l", bytes(8 * buckets)), array("d", bytes(8 * buckets))
        self.low, self.high = array("d", [math.inf] * buckets), array("d", [-math.inf] * buckets)
        self.pending: list[float] = []

    def settle(self) -> None:
        """Brings the last bucket up to date."""
        if self.pending:
            self.count[-1], self.sum[-1] = len(self.pending), sum(self.pending)
            self.low[-1], self.high[-1] = min(self.pending), max(self.pending)

    def open(self) -> None:
        """Begins a bucket."""
        self.settle()
        self.pending = []
        self.count.append(0)
        for values, empty in ((self.sum, 0.0), (self.low, math.inf), (self.high, -math.inf)):
            values.append(empty)

    def halve(self) -> None:
        """Makes one bucket of each two."""
        self.settle()
        self.pending = []
        for name, join in (("count", sum), ("sum", sum), ("low", min), ("high", max)):
            values = getattr(self, name)
            joined = [join(values[at : at + 2]) for at in range(0, len(values), 2)]
            setattr(self, name, array(values.typecode, joined))

    def cut(self, length: int) -> None:
        """Forgets the buckets from one on."""
        self.pending = []
        for values in (self.count, self.sum, self.low, self.high):
            del values[length:]


class Series:
    """The rows of metrics.jsonl, validation.jsonl or drift.jsonl, each step once: a row replaces earlier rows of
    its step and of later steps, as in `run_reader.StepRows`."""

    def __init__(self, path: Path, most: int = MOST_BUCKETS) -> None:
        self._path, self._most = path, most
        self._lock = threading.Lock()
        self._generation = time.time_ns()
        self._stamp: tuple[int, ...] = ()
        self._clear()

    def _clear(self) -> None:
        self._generation += 1
        self._recent: deque[dict[str, Any]] = deque(maxlen=MOST_RECENT)
        self._columns: dict[str, _Column] = {}
        self._first, self._offset = array("q"), array("q")
        """First step of each bucket, and where its row begins."""
        self._rows_in_last, self._width = 0, 1
        self.last_step, self._end, self._digest = -1, 0, ""

    def update(self) -> None:
        """Reads what was appended, or the whole file if it was replaced. A missing file has no rows."""
        with self._lock:
            try:
                found = self._path.stat()
                stamp = (found.st_size, found.st_mtime_ns, found.st_ino)
                if stamp == self._stamp:
                    return
                self._stamp = stamp
                with open_regular(self._path) as file:
                    if self._end and digest_before(file, self._end) != self._digest:
                        self._clear()
                    self._read(file)
                    self._digest = digest_before(file, self._end)
                for column in self._columns.values():
                    column.settle()
            except OSError:
                self._stamp = ()
                if self._end:
                    self._clear()

    def cursor(self) -> str:
        """A cursor for `rows_since` behind all current rows."""
        return f"{self._generation}-{self.last_step}"

    def rows_since(self, cursor: str) -> list[dict[str, Any]] | None:
        """The rows of steps after a cursor. None: the curves are not what they were, or there are too many rows."""
        generation, _, step = cursor.partition("-")
        with self._lock:
            seen = -1 if step == "-1" else whole(step)
            if generation != str(self._generation) or seen is None:
                return None
            new = (row for row in self._recent if row["step"] > seen)
            rows = [{name: value for name, value in row.items() if _is_number(value)} for row in new]
            is_whole = len(self._recent) < MOST_RECENT or self._recent[0]["step"] <= seen + 1
            return rows if is_whole else None

    def _read(self, file: BinaryIO) -> None:
        """Adds the rows that follow those read before."""
        for offset, row in rows_from(file, self._end):
            if 0 <= (step := step_of_row(row)) < 2**63:
                if step <= self.last_step:
                    self._go_back(file, step, offset)
                self._add(step, offset, row)
                self._recent.append(row)
            self._end = file.tell()

    def _go_back(self, file: BinaryIO, step: int, now: int) -> None:
        """Forgets the rows from a step on. The bucket that it lies in is read again up to there."""
        here = file.tell()
        self._generation += 1
        self._recent = deque((row for row in self._recent if row["step"] < step), maxlen=MOST_RECENT)
        keep = next((at for at in reversed(range(len(self._first))) if self._first[at] < step), -1)
        begin = self._offset[keep] if keep >= 0 else 0
        keep = max(keep, 0)
        self.last_step = self._first[keep] - 1 if self._first and keep < len(self._first) else -1
        for column in self._columns.values():
            column.cut(keep)
        del self._first[keep:], self._offset[keep:]
        self._rows_in_last = self._width
        for found in _latest(file, begin, now):
            if self.last_step < found[0] < step:
                self._add(*found)
        file.seek(here)

    def _add(self, step: int, offset: int, row: dict[str, Any]) -> None:
        if self._rows_in_last >= self._width or not self._first:
            if len(self._first) == self._most:
                for column in self._columns.values():
                    column.halve()
                self._first, self._offset = self._first[::2], self._offset[::2]
                self._width *= 2
            self._first.append(step)
            self._offset.append(offset)
            for column in self._columns.values():
                column.open()
            self._rows_in_last = 0
        for name, value in row.items():
            if name in _NO_NUMBERS or not _is_number(value):
                continue
            found = self._columns.get(name)
            if found is None:
                if len(self._columns) == _MOST_COLUMNS:
                    continue
                found = self._columns[name] = _Column(len(self._first))
            found.pending.append(value)
        self._rows_in_last += 1
        self.last_step = step

    def total(self, *names: str) -> float:
        """The sum of these numbers over all rows; 0 where there is none."""
        with self._lock:
            return sum(sum(self._columns[name].sum) for name in names if name in self._columns)

    def curves(self, begin: int = 0, end: int | None = None, points: int = MOST_BUCKETS) -> Curves:
        """The curves of the steps from `begin` to `end`. A part that has few buckets is read from the file again,
        finer."""
        with self._lock:
            last = self.last_step if end is None else end
            chosen = [at for at, step in enumerate(self._first) if step <= last and self._bucket_end(at) >= begin]
            if chosen and self._width > 1 and len(chosen) < min(points, self._most) // 2:
                return self._finer(chosen, begin, last, points)
            return self._shown(chosen, points)

    def _bucket_end(self, at: int) -> int:
        return self._first[at + 1] - 1 if at + 1 < len(self._first) else self.last_step

    def _finer(self, chosen: list[int], begin: int, last: int, points: int) -> Curves:
        part = Series(self._path, max(2, points // 2 * 2))
        after = self._offset[chosen[-1] + 1] if chosen[-1] + 1 < len(self._offset) else self._end
        try:
            with open_regular(self._path) as file:
                rows = _latest(file, self._offset[chosen[0]], after)
        except OSError:
            return self._shown(chosen, points)
        for found in rows:
            if begin <= found[0] <= last:
                part._add(*found)
        for column in part._columns.values():
            column.settle()
        return part._shown(list(range(len(part._first))), points)

    def _shown(self, chosen: list[int], points: int) -> Curves:
        every = max(1, math.ceil(len(chosen) / max(1, points)))
        groups = [chosen[at : at + every] for at in range(0, len(chosen), every)]
        shown = {}
        for name, column in self._columns.items():
            counts = [sum(column.count[at] for at in group) for group in groups]
            shown[name] = {
                "low": [_short(min(column.low[at] for at in group)) for group in groups],
                "high": [_short(max(column.high[at] for at in group)) for group in groups],
                "mean": [
                    _short(sum(column.sum[at] for at in group) / count) if count else None
                    for group, count in zip(groups, counts, strict=True)
                ],
            }
        return [self._first[group[0]] for group in groups], shown


def _latest(file: BinaryIO, begin: int, end: int) -> list[tuple[int, int, dict[str, Any]]]:
    """Step, offset and row of the lines between two offsets, without those that a later one of them replaces."""
    rows: list[tuple[int, int, dict[str, Any]]] = []
    for offset, row in rows_from(file, begin):
        if offset >= end:
            break
        if (step := step_of_row(row)) >= 0:
            while rows and rows[-1][0] >= step:
                rows.pop()
            rows.append((step, offset, row))
    return rows


def rows_from(file: BinaryIO, begin: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each complete line from an offset with where it begins; damaged ones are empty rows. After each the file stands
    behind its line, so a line that is still being written is left for the next time."""
    file.seek(begin)
    while line := file.readline(_LONGEST_LINE):
        if not line.endswith(b"\n"):
            if len(line) < _LONGEST_LINE:
                file.seek(begin)
                return
            while line and not line.endswith(b"\n"):  # a line that no run writes: it counts as one damaged row
                line = file.readline(_LONGEST_LINE)
            begin = file.tell()
            yield begin, {}
            continue
        yield begin, row_of(line) or {}
        begin += len(line)


def sparkline(path: Path, points: int = SPARK_POINTS) -> list[float]:
    """The course of the loss from evenly spaced lines of a file, without reading it whole."""
    values: list[float] = []
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            for index in range(points):
                file.seek(size * index // points)
                if index:
                    file.readline(_LONGEST_LINE)
                value = (row_of(file.readline(_LONGEST_LINE)) or {}).get("loss")
                if value is not None and _is_number(value):
                    values.append(float(value))
    except OSError:
        return []
    return values


def _is_number(value: object) -> bool:
    """Neither infinite, nor NaN, nor an integer that no float can be."""
    return type(value) in (int, float) and abs(value) < 1e300  # type: ignore[arg-type]  # a number by now


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None
