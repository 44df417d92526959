"""The curves of a run as PNG files, and its summary in words, from metrics.jsonl and validation.jsonl alone. Imports no
torch, and matplotlib only to draw.

A curve without numbers is left out, and so is a figure without curves. A step whose number is missing (null: it was not
finite) leaves a gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from toolkit.files import atomic_write, os_error_as_run_error, write_text
from toolkit.run_files import duration, read_status
from toolkit.train.run_reader import Row, read_metrics, read_validation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GRAPH = "graph"
"""Folder of the diagrams in that of a run."""

MOST_POINTS = 2000
"""Points of a curve; where there are more steps each is the mean of several."""

SMOOTHED_OVER = 50
"""Steps of the running mean; a twentieth of a short run."""

SUMMARY = "training_summary"


def missing_package() -> str:
    """What to install before anything can be drawn; empty: nothing."""
    if find_spec("matplotlib") is None:
        return "diagrams need the package 'matplotlib', which is not installed. Run: pip install matplotlib"
    return ""


@dataclass(frozen=True)
class Curve:
    """One number over the steps of a run."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    """NaN where a step has none."""

    def thinned(self, most: int = MOST_POINTS) -> Curve:
        """At most so many points, each the mean of as many steps."""
        width = math.ceil(len(self.steps) / most)
        if width <= 1:
            return self
        groups = [slice(start, start + width) for start in range(0, len(self.steps), width)]
        return Curve(self.name, [_mean(self.steps[at]) for at in groups], [_mean(self.values[at]) for at in groups])

    def smoothed(self) -> Curve:
        """The mean of the latest points; a gap stays one."""
        window = max(1, min(SMOOTHED_OVER, len(self.values) // 20))
        means = [
            _mean(self.values[max(0, index + 1 - window) : index + 1]) if math.isfinite(value) else math.nan
            for index, value in enumerate(self.values)
        ]
        return Curve(self.name, self.steps, means)


@dataclass(frozen=True)
class Panel:
    """One diagram: which curves it has, and its axes."""

    title: str
    takes: Callable[[str], bool]
    """Whether a curve of this name belongs here."""

    unit: str = ""
    right: Callable[[str], bool] = lambda name: False
    """Of these curves, those with an axis of their own, on the right."""

    smooth: bool = False


def _is_kl(name: str) -> bool:
    return name in ("loss_kl", "loss_kl_weighted", "kl_beta")


def _is_loss(name: str) -> bool:
    return ("loss" in name.split("/")[0].split("_") or name.startswith("validation")) and not _is_kl(name)


LOSSES = Panel("Losses", _is_loss, smooth=True)
KL = Panel("KL divergence", _is_kl, right=lambda name: name == "kl_beta", smooth=True)
RATES = Panel("Learning rates", lambda name: name == "lr" or name.startswith("lr/"))
TIMES = Panel("Step time", lambda name: name in ("step_s", "data_s"), unit="seconds", smooth=True)

FIGURES: dict[str, tuple[Panel, ...]] = {
    "training_losses": (LOSSES,),
    "kl_loss": (KL,),
    "learning_rates": (RATES,),
    "batch_times": (TIMES,),
    "training_overview": (LOSSES, KL, RATES, TIMES),
}
"""Name of the file, as FluxFlow's training guide has it -> its diagrams."""


def draw_diagrams(folder: Path, output: Path, suffix: str = "") -> list[Path]:
    """Draws the figures of the run in `folder` into `output`, names ending in `suffix`, and returns what was written:
    nothing where no step is recorded. Raises RunError where a file cannot be written."""
    rows, validation = read_metrics(folder).rows, read_validation(folder).rows
    curves = [*curves_of(rows), *curves_of(validation, prefix="validation/")]
    if not rows or not curves:
        return []
    title, written = str(read_status(folder).get("name") or folder.name), []
    for name, panels in FIGURES.items():
        filled = [(panel, [c for c in curves if panel.takes(c.name)]) for panel in panels]
        if shown := [(panel, found) for panel, found in filled if found]:
            path = output / f"{name}{suffix}.png"
            _draw(path, title, shown)
            written.append(path)
    summary = output / f"{SUMMARY}{suffix}.txt"
    write_text(summary, summarize(title, rows, curves))
    return [*written, summary]


def curves_of(rows: Sequence[Row], prefix: str = "") -> list[Curve]:
    """A curve for each number that a row has, in the order of their first row; not those without a finite value."""
    ignored = ("step", "epoch", "samples", "time", "skipped")
    names = dict.fromkeys(name for row in rows for name in row if name not in ignored)
    curves = []
    for name in names:
        present = [row for row in rows if name in row and _number(row.get("step")) is not None]
        values = [_finite(row[name]) for row in present]
        if any(map(math.isfinite, values)):
            shown = name if not prefix or name.startswith(prefix) else f"{prefix}{name}"
            curves.append(Curve(shown, [float(row["step"]) for row in present], values))
    return curves


def summarize(title: str, rows: Sequence[Row], curves: Iterable[Curve]) -> str:
    """The run in words: its length and speed, and of each curve the first and last values, the lowest and where."""
    seconds = sum(value for row in rows if (value := _number(row.get("step_s"))) is not None)
    last, skipped = rows[-1], sum(bool(row.get("skipped")) for row in rows)
    lines = [
        title,
        f"steps: {last.get('step')}, epochs: {last.get('epoch', 0) + 1}, samples: {last.get('samples', 'unknown')}",
        f"time of the steps: {duration(seconds)}" + (f"; skipped steps: {skipped}" if skipped else ""),
        "",
        f"{'':28} {'first':>12} {'last':>12} {'lowest':>12}  at step",
    ]
    for curve in curves:
        found = [(v, s) for v, s in zip(curve.values, curve.steps, strict=True) if math.isfinite(v)]
        few = max(1, min(SMOOTHED_OVER, len(found) // 20))
        lowest, step = min(found)
        ends = _mean([v for v, _ in found[:few]]), _mean([v for v, _ in found[-few:]])
        lines.append(f"{curve.name:28} {ends[0]:12.6g} {ends[1]:12.6g} {lowest:12.6g}  {step:g}")
    return "\n".join([*lines, "", "first and last: means of up to 50 steps"]) + "\n"


def _draw(path: Path, title: str, panels: Sequence[tuple[Panel, Sequence[Curve]]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 if len(panels) > 1 else 1
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(8 * columns, 4.5 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for index, (panel, curves) in enumerate(panels, start=1):
        _draw_panel(figure.add_subplot(lines, columns, index), panel, curves)
    with os_error_as_run_error(path), atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _draw_panel(axes: Axes, panel: Panel, curves: Sequence[Curve]) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(panel.unit)
    axes.grid(alpha=0.3)
    right: Any = None
    drawn: list[Any] = []
    for number, curve in enumerate(curves):
        on = axes
        if panel.right(curve.name):
            on = right = right or axes.twinx()
        points, color = curve.thinned(), f"C{number % 10}"
        mark = "." if len(points.steps) == 1 else ""
        if panel.smooth and len(points.steps) > SMOOTHED_OVER:
            on.plot(points.steps, points.values, color=color, alpha=0.25, linewidth=0.8)
            points = points.smoothed()
        drawn += on.plot(points.steps, points.values, color=color, label=curve.name, marker=mark)
    own = [value for curve in curves if not panel.right(curve.name) for value in curve.values if math.isfinite(value)]
    if panel.smooth and own and min(own) > 0 and max(own) > 20 * min(own):
        axes.set_yscale("log")
    axes.legend(handles=drawn, fontsize="small")


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.nan


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if not isinstance(value, int) or abs(value) < 10**300 else None  # of another program


def _finite(value: object) -> float:
    number = _number(value)
    return number if number is not None and math.isfinite(number) else math.nan
