"""Draws the curves of a run as PNG files, and writes its summary as text.

Only metrics.jsonl and validation.jsonl are read. A curve without numbers
is left out, and so is a figure without curves. A line skips steps without a number.
Imports no torch, and imports matplotlib only to draw.

`diagrams` calls `draw_diagrams`. `run_records` uses the panels to sort the curves of a
run's page, which a script draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from extensions.tools.shared.series import Curve, Series, series_of
from toolkit.files.run_files import duration, read_status
from toolkit.files.writing import (
    atomic_write,
    os_error_as_run_error,
    read_regular,
    require_own,
    write_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHED_OVER = 50
"""Points of the running mean; a twentieth of a short curve."""

SUMMARY = "training_summary"
_END = "first and last: means of up to 50 "


@dataclass(frozen=True)
class Panel:
    """One diagram: which curves it has, and its axes.

    >>> RATES.takes("lr/text_encoder"), RATES.takes("loss")
    (True, False)
    """

    title: str
    takes: Callable[[str], bool]
    """Whether a curve of this name belongs here."""

    unit: str = ""
    right: Callable[[str], bool] = lambda name: False
    """Whether a curve is plotted against a second axis, on the right."""

    smooth: bool = False


def _is_kl(name: str) -> bool:
    return name in ("loss_kl", "loss_kl_weighted", "kl_beta")


def _is_loss(name: str) -> bool:
    is_loss = "loss" in name.split("/")[0].split("_") or name.startswith("validation")
    return is_loss and not _is_kl(name)


LOSSES = Panel("Losses", _is_loss, smooth=True)
KL = Panel("KL divergence", _is_kl, right=lambda name: name == "kl_beta", smooth=True)
RATES = Panel("Learning rates", lambda name: name == "lr" or name.startswith("lr/"))
TIMES = Panel(
    "Step time", lambda name: name in ("step_s", "data_s"), unit="seconds", smooth=True
)

FIGURES: dict[str, tuple[Panel, ...]] = {
    "training_losses": (LOSSES,),
    "kl_loss": (KL,),
    "learning_rates": (RATES,),
    "batch_times": (TIMES,),
    "training_overview": (LOSSES, KL, RATES, TIMES),
}
"""Name of the file, as FluxFlow's training guide has it -> its diagrams."""


def draw_diagrams(folder: Path, output: Path, suffix: str = "") -> list[Path]:
    """Draws the figures of the run in `folder` into `output`, with names that end in
    `suffix`. Returns the files that were written: none where no step is recorded.
    Raises RunError where a file cannot be written, or where another program's file
    would be replaced."""
    run = [series.update() for series in series_of(folder)]
    curves = [curve for series in run for curve in series.curves()]
    if run[0].last_step < 0 or not curves:
        return []
    status = read_status(folder)
    written = []
    title = str(status.get("name") or folder.name)
    for name, panels in FIGURES.items():
        chosen = [(p, _distinct(c for c in curves if p.takes(c.name))) for p in panels]
        shown = [(panel, of_panel) for panel, of_panel in chosen if of_panel]
        if shown:
            path = output / f"{name}{suffix}.png"
            require_own(path, _is_own)
            _draw(path, title, shown)
            written.append(path)
    summary = output / f"{SUMMARY}{suffix}.txt"
    require_own(summary, _is_own)
    write_text(summary, summarize(title, run, status.get("skipped", 0)))
    return [*written, summary]


def _distinct(curves: Iterable[Curve]) -> list[Curve]:
    """The curves without those that an earlier one hides. With one loss alone, `loss`,
    `loss_flow` and `loss/flow` have the same values."""
    distinct: list[Curve] = []
    for curve in curves:
        if not any(_same(curve, other) for other in distinct):
            distinct.append(curve)
    return distinct


def _same(curve: Curve, other: Curve) -> bool:
    """Whether two curves have equal values, except for rounding."""
    pairs = zip(curve.mean, other.mean, strict=False)
    return curve.steps == other.steps and all(
        math.isclose(a, b, rel_tol=1e-5) for a, b in pairs
    )


def summarize(title: str, run: Sequence[Series], skipped: int = 0) -> str:
    """The run in words: its length and speed, and for each curve the first and last
    values, and the lowest value with its step."""
    last = run[0].last_row()
    seconds = run[0].total("step_s")
    epochs = last["epoch"] + 1 if type(last.get("epoch")) is int else 1
    lines = [
        title,
        f"steps: {last.get('step')}, epochs: {epochs}, samples: {last.get('samples', 'unknown')}",
        f"time of the steps: {duration(seconds)}"
        + (f"; skipped steps: {skipped}" if skipped else ""),
        "",
        f"{'':28} {'first':>12} {'last':>12} {'lowest':>12}  at step",
    ]
    for series in run:
        for curve in series.curves():
            first, end = ends(curve)
            lowest, step = series.lowest(curve)
            lines.append(
                f"{curve.name:28} {first:12.6g} {end:12.6g} {lowest:12.6g}  {step}"
            )
    return "\n".join([*lines, "", f"{_END}points"]) + "\n"


def ends(curve: Curve) -> tuple[float, float]:
    """The means of the first and of the last points: a twentieth of the points each, at
    most SMOOTHED_OVER."""
    few = max(1, min(SMOOTHED_OVER, len(curve.mean) // 20))
    return fmean(curve.mean[:few]), fmean(curve.mean[-few:])


def smoothed(values: Sequence[float]) -> list[float]:
    """The running mean: at each point the mean of the latest points up to it.

    >>> smoothed([float(number) for number in range(60)])[-1]
    58.0
    """
    window = max(1, min(SMOOTHED_OVER, len(values) // 20))
    return [
        fmean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)
    ]


def _is_own(file: Path) -> bool:
    """Whether a file is an image of matplotlib, or a summary."""
    data = read_regular(file)
    return b"\0Matplotlib" in data or _END.encode() in data


def _draw(
    path: Path, title: str, panels: Sequence[tuple[Panel, Sequence[Curve]]]
) -> None:
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
        values = curve.mean
        color = f"C{number % 10}"
        mark = "." if len(curve.steps) == 1 else ""
        if panel.smooth and len(curve.steps) > SMOOTHED_OVER:
            on.plot(curve.steps, values, color=color, alpha=0.25, linewidth=0.8)
            values = smoothed(curve.mean)
        drawn += on.plot(
            curve.steps, values, color=color, label=curve.name, marker=mark
        )
    on_the_left = [curve for curve in curves if not panel.right(curve.name)]
    if panel.smooth and is_wide(on_the_left):
        axes.set_yscale("log")
    axes.legend(handles=drawn, fontsize="small")


def is_wide(curves: Sequence[Curve]) -> bool:
    """Whether the values are best seen on a logarithmic axis."""
    lowest = min((min(curve.low) for curve in curves), default=0.0)
    return lowest > 0 and max(max(curve.high) for curve in curves) > 20 * lowest
