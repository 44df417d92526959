"""The curves of a run: which there are, and what becomes of gaps and long runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from toolkit.train import diagrams
from toolkit.train.diagrams import Curve, curves_of, draw_diagrams, summarize


def row(step: int, **numbers: float | None) -> dict:
    return {"step": step, "epoch": 0, "samples": step, "time": "2026-01-01T00:00:00Z", "step_s": 0.5, **numbers}


def write_run(folder: Path, rows: list[dict], validation: list[dict] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("metrics.jsonl", rows), ("validation.jsonl", validation)):
        (folder / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_a_number_is_a_curve_a_null_is_a_gap_and_one_without_numbers_is_none() -> None:
    curves = curves_of([row(1, loss=2.0, loss_kl=None), row(2, loss=None), row(4, loss=1.0, late=3.0)])
    found = {curve.name: curve for curve in curves}
    assert list(found) == ["step_s", "loss", "late"]
    assert found["loss"].steps == [1, 2, 4] and found["late"].steps == [4]
    assert [math.isnan(value) for value in found["loss"].values] == [False, True, False]


def test_the_running_mean_keeps_gaps_and_a_long_curve_is_thinned_without_losing_its_sum() -> None:
    values = [float(step % 7) for step in range(100)]
    values[50] = math.nan
    smoothed = Curve("loss", range(100), values).smoothed()
    assert math.isnan(smoothed.values[50]) and smoothed.values[51] == pytest.approx(
        (values[47] + values[48] + values[49] + values[51]) / 4
    )
    long = Curve("loss", range(10_000), [1.0] * 5_000 + [3.0] * 5_000).thinned()
    assert len(long.steps) == 2_000 and sum(long.values) / 2_000 == 2.0 and long.steps[0] == 2.0


def test_only_figures_with_curves_are_written(tmp_path: Path) -> None:
    rows = [row(step, loss=1 / step, lr=1e-3) for step in range(1, 4)]
    run = write_run(tmp_path / "run", rows, [{"step": 2, "loss": 0.4}])
    files = draw_diagrams(run, tmp_path / "graph", "_vae")
    names = {path.name for path in (tmp_path / "graph").iterdir()}
    assert names == {path.name for path in files}
    stems = ("training_losses", "learning_rates", "batch_times", "training_overview")
    assert names == {*(f"{stem}_vae.png" for stem in stems), "training_summary_vae.txt"}
    colors = Image.open(tmp_path / "graph" / "training_losses_vae.png").convert("RGB").getcolors(100_000)
    assert {(31, 119, 180), (255, 127, 14)} <= {color for _, color in colors}  # loss, and that of the validation


def test_what_cannot_be_drawn_is_left_out(tmp_path: Path) -> None:
    assert draw_diagrams(write_run(tmp_path / "empty", []), tmp_path / "graph") == []
    assert not (tmp_path / "graph").exists()
    broken = write_run(tmp_path / "broken", [row(1, loss=1.0)])
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 0.5, "lr"')  # the machine went down
    text = (draw_diagrams(broken, tmp_path / "graph")[-1]).read_text()
    assert "steps: 1, epochs: 1" in text


def test_the_summary_has_first_last_and_lowest() -> None:
    rows = [row(step, loss=abs(step - 60) + 1.0) for step in range(1, 101)]
    line = next(line for line in summarize("run", rows, curves_of(rows)).splitlines() if line.startswith("loss"))
    assert line.split() == ["loss", "58", "39", "1", "60"]  # means of 5, the 20th part
    assert "time of the steps: 50s" in summarize("run", rows, curves_of(rows))


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagrams, "find_spec", lambda name: None)
    assert diagrams.missing_package().endswith("Run: pip install matplotlib")
