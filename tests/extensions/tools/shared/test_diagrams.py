"""The figures of a run, and its summary in words."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from PIL import Image

from extensions.tools.shared import diagrams
from extensions.tools.shared.diagrams import draw_diagrams, ends, smoothed, summarize
from extensions.tools.shared.series import Curve, series_of
from toolkit.errors import RunError


def row(step: int, **numbers: float | None) -> dict:
    return {
        "step": step,
        "epoch": 0,
        "samples": step,
        "time": "2026-01-01T00:00:00Z",
        "step_s": 0.5,
        **numbers,
    }


def write_run(folder: Path, rows: list[dict], validation: list[dict] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("metrics.jsonl", rows), ("validation.jsonl", validation)):
        (folder / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_the_running_mean_and_the_means_of_the_ends_are_of_a_twentieth() -> None:
    values = [float(step % 7) for step in range(100)]
    curve = Curve("loss", list(range(100)), values, values, values)
    assert (
        smoothed(values)[51] == pytest.approx(fmean(values[47:52]))
        and smoothed(values)[0] == 0
    )
    assert ends(curve) == (fmean(values[:5]), fmean(values[-5:]))
    assert ends(replace(curve, mean=values * 20)) == (
        fmean(values[:50]),
        fmean(values[-50:]),
    )
    assert smoothed([]) == []


@pytest.mark.slow
def test_a_run_of_many_steps_is_read_in_little_memory(tmp_path: Path) -> None:
    """A quarter of what the rows take together; each further row takes 16 bytes."""
    rows = [
        row(step, loss=1 / step, lr=1e-3, grad_norm=0.5) for step in range(1, 20_001)
    ]
    run = write_run(tmp_path / "run", rows)
    tracemalloc.start()
    metrics = series_of(run)[0].update()
    text = summarize("run", [metrics])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6 and [len(curve.steps) for curve in metrics.curves()] == [1250] * 4
    assert (
        "time of the steps: 2h46m" in text
        and "steps: 20000, epochs: 1, samples: 20000" in text
    )
    # 50 points of 16 steps
    assert text.splitlines()[6].split() == [
        "loss",
        "0.00907807",
        "5.10262e-05",
        "5e-05",
        "20000",
    ]


@pytest.mark.slow
def test_only_figures_with_curves_are_written(tmp_path: Path) -> None:
    rows = [row(step, loss=1 / step, lr=1e-3) for step in range(1, 4)]
    run = write_run(tmp_path / "run", rows, [{"step": 2, "loss": 0.4}])
    files = draw_diagrams(run, tmp_path / "graph", "_vae")
    names = {path.name for path in (tmp_path / "graph").iterdir()}
    assert names == {path.name for path in files}
    stems = ("training_losses", "learning_rates", "batch_times", "training_overview")
    assert names == {*(f"{stem}_vae.png" for stem in stems), "training_summary_vae.txt"}
    colors = (
        Image.open(tmp_path / "graph" / "training_losses_vae.png")
        .convert("RGB")
        .getcolors(100_000)
    )
    # loss, and that of the validation
    assert {(31, 119, 180), (255, 127, 14)} <= {color for _, color in colors}


@pytest.mark.slow
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


def test_the_summary_has_first_last_and_lowest(tmp_path: Path) -> None:
    rows = [row(step, loss=abs(step - 60) + 1.0) for step in range(1, 101)]
    text = summarize(
        "run", [series_of(write_run(tmp_path, rows))[0].update()], skipped=3
    )
    line = next(line for line in text.splitlines() if line.startswith("loss"))
    assert line.split() == ["loss", "58", "39", "1", "60"]  # means of 5, the 20th part
    assert "time of the steps: 50s; skipped steps: 3" in text


def test_one_loss_under_several_names_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {}
    monkeypatch.setattr(
        diagrams, "_draw", lambda path, title, panels: drawn.update({path.stem: panels})
    )
    names = ("loss", "loss_flow", "loss/flow", "loss/text_encoder")
    rows = [
        row(step, **dict.fromkeys(names, 1 / step), loss_vae=0.5 / step)
        for step in (1, 2, 3)
    ]
    draw_diagrams(write_run(tmp_path / "run", rows), tmp_path / "graph")
    [(_, curves)] = drawn["training_losses"]
    assert [curve.name for curve in curves] == ["loss", "loss_vae"]
