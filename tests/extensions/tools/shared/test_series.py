"""Curves of files that grow, are replaced and go back, against what `rows_by_step` says
of the same file."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from extensions.tools.shared.series import (
    MOST_RECENT,
    Curve,
    Series,
    series_of,
)
from toolkit.train import run_reader
from toolkit.train.run_reader import rows_by_step


def line(step: int, value: float | None, **more: object) -> str:
    return json.dumps({"step": step, "loss": value, "epoch": 0, **more}) + "\n"


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def named(curves: list[Curve], name: str) -> Curve:
    [found] = [curve for curve in curves if curve.name == name]
    return found


def check(series: Series, folder: Path) -> None:
    """The buckets tile the steps that `rows_by_step` has, and hold their extremes and
    means."""
    series.update()
    with rows_by_step(folder / "metrics.jsonl") as rows:
        truth = {row["step"]: row["loss"] for row in rows}
    assert series.last_step == max(truth, default=-1)
    finite = {step: value for step, value in truth.items() if value is not None}
    loss = named(series.curves(), "loss") if finite else Curve("loss", [], [], [], [])
    ends = [*loss.steps[1:], series.last_step + 1][: len(loss.steps)]
    covered = 0
    for at, (begin, end) in enumerate(zip(loss.steps, ends, strict=True)):
        values = [value for step, value in finite.items() if begin <= step < end]
        covered += len(values)
        assert (loss.low[at], loss.high[at]) == (min(values), max(values))
        assert loss.mean[at] == pytest.approx(math.fsum(values) / len(values))
    assert covered == len(finite)
    if finite:
        assert series.lowest(loss) == (
            min(finite.values()),
            min(finite, key=finite.__getitem__),
        )
    assert series.last_row().get("step", -1) == series.last_step
    total = pytest.approx(math.fsum(v for v in truth.values() if v is not None))
    assert (
        series.total("loss") == total
        and series.total("loss", "no such number") == total
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_file_that_grows_goes_back_and_is_replaced_reads_as_the_whole_file_does(
    tmp_path: Path, seed: int
) -> None:
    rng, path = random.Random(seed), tmp_path / "metrics.jsonl"
    series, step, torn = Series(path, most=16), 0, ""
    path.write_text("")
    for _ in range(40):
        text = torn
        for _ in range(rng.randint(0, 30)):
            step += rng.randint(1, 3)
            if rng.random() < 0.03:
                step = max(1, step - rng.randint(1, 60))  # a resume that repeats steps
            text += line(step, rng.choice([rng.random(), rng.random() * 100, None]))
            text += rng.choice(["", "", "", "not json\n", '{"no": "step"}\n'])
        if rng.random() < 0.1:  # another file under the same name
            step = rng.randint(1, 20)
            fresh = tmp_path / "fresh"
            fresh.write_text(
                "".join(line(each, each / 7) for each in range(1, step + 1))
            )
            fresh.replace(path)
            text = ""
        cut = rng.randint(0, len(text))
        append(path, text[:cut])
        torn = text[cut:]
        check(series, tmp_path)
    append(path, torn)
    check(series, tmp_path)


def test_no_spike_is_lost_and_a_part_is_read_finer(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(line(step, 99.0 if step == 7777 else 1.0) for step in range(1, 20_001))
    )
    series = Series(path, most=64)
    series.update()
    [whole] = series.curves(points=20)
    assert len(whole.steps) <= 20
    assert max(whole.high) == 99.0
    [part] = series.curves(7770, 7790, points=40)
    assert part.steps[part.high.index(99.0)] == 7777
    assert series.curves(1, 20_000, points=64)[0].high.count(99.0) == 1


def test_a_curve_that_begins_late_has_no_values_before(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        line(1, 0.5)
        + line(2, 0.4)
        + line(3, 0.3, late=7, odd=math.nan, text="no number", yes=True)
    )
    series = Series(path)
    series.update()
    assert [(curve.name, curve.steps) for curve in series.curves()] == [
        ("loss", [1, 2, 3]),
        ("late", [3]),
    ]
    assert named(series.curves(), "late").mean == [7]


def test_a_watcher_gets_each_new_row_once_and_is_told_when_the_past_changes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1, 0.5))
    series = Series(path)
    series.update()
    cursor = series.cursor()
    assert series.rows_since(cursor) == []
    append(path, line(2, 0.4) + line(3, 0.3) + '{"step": 4')
    series.update()
    assert [row["step"] for row in series.rows_since(cursor)] == [2, 3]
    cursor = series.cursor()
    append(path, ', "loss": 1}\n' + line(3, 0.9))  # back to step 3
    series.update()
    assert series.rows_since(cursor) is None
    cursor = series.cursor()
    append(path, "".join(line(step, 0.1) for step in range(4, MOST_RECENT + 50)))
    series.update()
    assert series.rows_since(cursor) is None  # more than a page can take
    path.unlink()
    series.update()
    assert (series.rows_since(cursor), series.last_step) == (None, -1)
    for odd in ("", "x", "1-2-3", f"{series.cursor()}0"):
        series.rows_since(odd)


def test_a_file_that_is_replaced_by_one_without_rows_has_no_curves(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1, 0.5))
    series = Series(path).update()
    cursor = series.cursor()
    path.write_text("not a row of a run\n" * 9)
    assert series.update().curves() == [] and series.rows_since(cursor) is None


def test_the_numbers_of_a_run_are_those_of_its_steps_and_what_is_measured(
    tmp_path: Path,
) -> None:
    for name in ("metrics", "validation"):
        (tmp_path / f"{name}.jsonl").write_text(line(4, 0.5, **{f"{name}/own": 1}))
    names = [
        [curve.name for curve in series.update().curves()]
        for series in series_of(tmp_path)
    ]
    assert names == [
        ["loss", "metrics/own"],
        ["validation/loss", "validation/own"],
    ]


def test_a_line_without_an_end_and_one_that_is_too_long_are_no_rows(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(run_reader, "_LONGEST_LINE", 65_536)
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        line(1, 0.5)
        + '{"x": "'
        + "y" * 200_000
        + '"}\n'
        + line(2, 0.4)
        + line(2**64, 1.0)
    )
    series = Series(path)
    series.update()
    assert named(series.curves(), "loss").steps == [1, 2]
    append(path, '{"x": "' + "y" * 200_000)
    series.update()
    append(path, '"}\n' + line(3, 0.4))
    series.update()
    assert series.last_step == 3
