"""The curves of a run: which there are, and what becomes of gaps and long runs."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections import Counter
from pathlib import Path
from random import Random
from statistics import fmean

import pytest
from PIL import Image

from extensions.tools.shared import diagrams
from extensions.tools.shared.diagrams import Curve, History, draw_diagrams, history_of, read_history, summarize
from toolkit.errors import RunError


def row(step: int, **numbers: float | None) -> dict:
    return {"step": step, "epoch": 0, "samples": step, "time": "2026-01-01T00:00:00Z", "step_s": 0.5, **numbers}


def history(rows: list[dict]) -> History:
    return history_of(rows, Counter(name for each in rows for name in each))


def write_run(folder: Path, rows: list[dict], validation: list[dict] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("metrics.jsonl", rows), ("validation.jsonl", validation)):
        (folder / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_a_number_is_a_curve_a_null_is_a_gap_and_one_without_numbers_is_none() -> None:
    curves = history([row(1, loss=2.0, loss_kl=None), row(2, loss=None), row(4, loss=1.0, late=3.0)]).curves
    found = {curve.name: curve for curve in curves}
    assert list(found) == ["step_s", "loss", "late"]
    assert found["loss"].steps == [1, 2, 4] and found["late"].steps == [4]
    assert [math.isnan(value) for value in found["loss"].values] == [False, True, False]


def curve(values: list[float], most: int = 2_000) -> Curve:
    made = Curve("loss", len(values), most)
    for step, value in enumerate(values):
        made.add(step, value)
    made.end()
    return made


def test_the_running_mean_keeps_gaps_and_a_long_curve_is_thinned_without_losing_its_sum() -> None:
    values = [float(step % 7) for step in range(100)]
    values[50] = math.nan
    smoothed = curve(values).smoothed()
    assert math.isnan(smoothed[50]) and smoothed[51] == pytest.approx(
        (values[47] + values[48] + values[49] + values[51]) / 4
    )
    long = curve([1.0] * 5_000 + [3.0] * 5_000)
    assert len(long.steps) == 2_000 and sum(long.values) / 2_000 == 2.0 and long.steps[0] == 2.0


@pytest.mark.parametrize("count", [1, 19, 20, 300, 301, 2_000, 2_001, 7_003])
@pytest.mark.parametrize("most", [300, 2_000])
def test_what_is_thinned_while_it_is_read_is_what_all_values_together_give(count: int, most: int) -> None:
    """Bit by bit, against the plain way: groups of equal width, their finite values' means."""
    lots = Random(count)
    values = [math.nan if lots.random() < 0.1 else lots.lognormvariate(0, 1) for _ in range(count)]
    values[-1] = 0.5
    made, width = curve(values, most), math.ceil(count / most)
    groups = [values[start : start + width] for start in range(0, count, width)]
    finite = [[value for value in group if math.isfinite(value)] for group in groups]
    assert list(map(repr, made.values)) == [repr(fmean(group) if group else math.nan) for group in finite]
    assert made.steps == [fmean(range(count)[start : start + width]) for start in range(0, count, width)]
    kept = [value for value in values if math.isfinite(value)]
    few = max(1, min(50, len(kept) // 20))
    assert made.ends() == (fmean(kept[:few]), fmean(kept[-few:]))
    assert (made.lowest, made.highest) == ((min(kept), values.index(min(kept))), max(kept))


def test_a_run_of_many_steps_is_read_in_little_memory(tmp_path: Path) -> None:
    """A quarter of what the rows take together; each further row takes 16 bytes."""
    rows = [row(step, loss=1 / step, lr=1e-3, grad_norm=0.5) for step in range(1, 20_001)]
    run = write_run(tmp_path / "run", rows)
    tracemalloc.start()
    found = read_history(run)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6 and [len(each.steps) for each in found.curves] == [2_000] * 4
    assert found.seconds == 10_000 and (found.first, found.last) == (rows[0], rows[-1])


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
    assert draw_diagrams(broken, tmp_path / "graph")  # its own files are replaced
    for mine in ("training_summary.txt", "training_losses.png"):
        drawn = (tmp_path / "graph" / mine).read_bytes()
        (tmp_path / "graph" / mine).write_bytes(b"mine")
        with pytest.raises(RunError, match=f"{mine}' was not made by this program"):
            draw_diagrams(broken, tmp_path / "graph")
        (tmp_path / "graph" / mine).write_bytes(drawn)


def test_the_summary_has_first_last_and_lowest() -> None:
    rows = [row(step, loss=abs(step - 60) + 1.0) for step in range(1, 101)]
    line = next(line for line in summarize("run", history(rows)).splitlines() if line.startswith("loss"))
    assert line.split() == ["loss", "58", "39", "1", "60"]  # means of 5, the 20th part
    assert "time of the steps: 50s" in summarize("run", history(rows))


def test_one_loss_under_several_names_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    monkeypatch.setattr(diagrams, "_draw", lambda path, title, panels: drawn.update({path.stem: panels}))
    names = ("loss", "loss_flow", "loss/flow", "loss/text_encoder")
    rows = [row(step, **dict.fromkeys(names, 1 / step), loss_vae=0.5 / step) for step in (1, 2, 3)]
    draw_diagrams(write_run(tmp_path / "run", rows), tmp_path / "graph")
    [(_, curves)] = drawn["training_losses"]
    assert [curve.name for curve in curves] == ["loss", "loss_vae"]
