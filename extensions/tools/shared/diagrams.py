"""The curves of a run as PNG files, and its summary in words, from metrics.jsonl, validation.jsonl and drift.jsonl
alone. Imports no torch, and matplotlib only to draw.

A curve without numbers is left out, and so is a figure without curves. A step whose number is missing (null: it was not
finite) leaves a gap.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from toolkit.errors import RunError
from toolkit.files.run_files import DRIFT, METRICS, VALIDATION, duration, read_status
from toolkit.files.writing import atomic_write, os_error_as_run_error, read_regular, why_not_replaced, write_text
from toolkit.train.run_reader import Row, rows_by_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 2000
"""Points of a curve; where there are more steps each is the mean of several."""

SMOOTHED_OVER = 50
"""Steps of the running mean; a twentieth of a short run."""

SUMMARY = "training_summary"
_END = "first and last: means of up to 50 steps"


class Curve:
    """One number over the steps of a run: at most so many points, each the mean of as many steps; and the facts of all
    its values."""

    def __init__(self, name: str, count: int, most: int = MOST_POINTS) -> None:
        """count: how many steps will be added. most: points."""
        self.name = name
        self.steps: list[float] = []
        self.values: list[float] = []
        """NaN where a step has none."""
        self.found = 0
        """Values that are finite; `lowest` and its step, `highest`, and the first and last ones are of these."""
        self.lowest, self.highest = (math.inf, math.inf), -math.inf
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=SMOOTHED_OVER)
        self._width = max(1, math.ceil(count / most))
        self._group: list[tuple[float, float]] = []

    def add(self, step: float, value: float) -> None:
        """The value of the next step; NaN: it has none."""
        if math.isfinite(value):
            self.found += 1
            self.lowest, self.highest = min(self.lowest, (value, step)), max(self.highest, value)
            if len(self._first) < SMOOTHED_OVER:
                self._first.append(value)
            self._last.append(value)
        self._group.append((step, value))
        if len(self._group) == self._width:
            self.end()

    def end(self) -> None:
        """Makes a point of the steps that are left."""
        if self._group:
            steps, values = zip(*self._group, strict=True)
            self.steps.append(_mean(steps))
            self.values.append(_mean(values))
            self._group.clear()

    def ends(self) -> tuple[float, float]:
        """The means of the first and of the last values: a twentieth of all, at most SMOOTHED_OVER."""
        few = max(1, min(SMOOTHED_OVER, self.found // 20))
        return _mean(self._first[:few]), _mean([*self._last][-few:])

    def smoothed(self) -> list[float]:
        """The mean of the latest points; a gap stays one."""
        window = max(1, min(SMOOTHED_OVER, len(self.values) // 20))
        return [
            _mean(self.values[max(0, index + 1 - window) : index + 1]) if math.isfinite(value) else math.nan
            for index, value in enumerate(self.values)
        ]


@dataclass
class History:
    """What the rows of a run say, put together while they are read."""

    curves: list[Curve]
    """Ordered by their first row, without those that have no finite value."""

    first: Row | None = None
    last: Row | None = None
    seconds: float | None = None
    """Total of all steps; None: no step records it."""

    skipped: int = 0
    """Steps without an update of the weights."""


@dataclass(frozen=True)
class Panel:
    """One diagram: which curves it has, and its axes."""

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
    return is_loss and not _is_kl(name) and "drift/" not in name


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
    nothing where no step is recorded. Raises RunError where a file cannot be written, or is somebody else's."""
    history = read_history(folder)
    curves = history.curves
    if history.last is None or not curves:
        return []
    title, written = str(read_status(folder).get("name") or folder.name), []
    for name, panels in FIGURES.items():
        filled = [(panel, _distinct(c for c in curves if panel.takes(c.name))) for panel in panels]
        if shown := [(panel, found) for panel, found in filled if found]:
            _require_own(path := output / f"{name}{suffix}.png")
            _draw(path, title, shown)
            written.append(path)
    _require_own(summary := output / f"{SUMMARY}{suffix}.txt")
    write_text(summary, summarize(title, history))
    return [*written, summary]


def _distinct(curves: Iterable[Curve]) -> list[Curve]:
    """Without those that an earlier one hides: of one loss `loss`, `loss_flow` and `loss/flow` have the same values."""
    found: list[Curve] = []
    for curve in curves:
        if not any(_same(curve, other) for other in found):
            found.append(curve)
    return found


def _same(curve: Curve, other: Curve) -> bool:
    """But for rounding."""
    return curve.steps == other.steps and all(
        math.isclose(a, b, rel_tol=1e-5) or (math.isnan(a) and math.isnan(b))
        for a, b in zip(curve.values, other.values, strict=True)
    )


def read_history(folder: Path, most: int = MOST_POINTS) -> History:
    """The curves of the run in `folder`, those of its validation last. most: points of a curve."""
    with rows_by_step(folder / METRICS) as rows:
        history = history_of(rows, rows.counts, most)
    with rows_by_step(folder / VALIDATION) as rows:
        history.curves += history_of(rows, rows.counts, most, prefix="validation/").curves
    with rows_by_step(folder / DRIFT) as rows:
        history.curves += history_of(rows, rows.counts, most).curves
    return history


def history_of(rows: Iterable[Row], counts: Mapping[str, int], most: int = MOST_POINTS, prefix: str = "") -> History:
    """A curve for each number that a row has. counts: name -> how many rows have it. prefix: of the curves' names."""
    ignored = ("step", "epoch", "samples", "time", "skipped")
    curves: dict[str, Curve] = {}
    history = History([])
    for row in rows:
        step = float(row["step"])
        for name in row:
            if name in ignored:
                continue
            if (curve := curves.get(name)) is None:
                shown = name if not prefix or name.startswith(prefix) else f"{prefix}{name}"
                curve = curves[name] = Curve(shown, counts[name], most)
            curve.add(step, _finite(row[name]))
        history.first, history.last = history.first or row, row
        if (seconds := _number(row.get("step_s"))) is not None and 0 <= seconds < 1e9:
            history.seconds = (history.seconds or 0.0) + seconds
        history.skipped += bool(row.get("skipped"))
    for curve in curves.values():
        curve.end()
    history.curves = [curve for curve in curves.values() if curve.found]
    return history


def summarize(title: str, history: History) -> str:
    """The run in words: its length and speed, and of each curve the first and last values, the lowest and where."""
    last, skipped = history.last or {}, history.skipped
    epochs = int(_number(last.get("epoch")) or 0) + 1
    lines = [
        title,
        f"steps: {last.get('step')}, epochs: {epochs}, samples: {last.get('samples', 'unknown')}",
        f"time of the steps: {duration(history.seconds or 0)}" + (f"; skipped steps: {skipped}" if skipped else ""),
        "",
        f"{'':28} {'first':>12} {'last':>12} {'lowest':>12}  at step",
    ]
    for curve in history.curves:
        ends, (lowest, step) = curve.ends(), curve.lowest
        lines.append(f"{curve.name:28} {ends[0]:12.6g} {ends[1]:12.6g} {lowest:12.6g}  {step:g}")
    return "\n".join([*lines, "", _END]) + "\n"


def _require_own(path: Path) -> None:
    """Raises RunError for a file that is neither an image of matplotlib nor a summary."""
    if reason := why_not_replaced(
        path, lambda file: b"\0Matplotlib" in (data := read_regular(file)) or _END.encode() in data
    ):
        raise RunError(reason)


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
        values, color = curve.values, f"C{number % 10}"
        mark = "." if len(curve.steps) == 1 else ""
        if panel.smooth and len(curve.steps) > SMOOTHED_OVER:
            on.plot(curve.steps, values, color=color, alpha=0.25, linewidth=0.8)
            values = curve.smoothed()
        drawn += on.plot(curve.steps, values, color=color, label=curve.name, marker=mark)
    if panel.smooth and is_wide([curve for curve in curves if not panel.right(curve.name)]):
        axes.set_yscale("log")
    axes.legend(handles=drawn, fontsize="small")


def is_wide(curves: Sequence[Curve]) -> bool:
    """Whether the values are best seen on a logarithmic axis."""
    lowest = min((curve.lowest[0] for curve in curves), default=0.0)
    return lowest > 0 and max(curve.highest for curve in curves) > 20 * lowest


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
