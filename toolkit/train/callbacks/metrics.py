"""metrics.jsonl: one line per optimizer step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit import run_files
from toolkit.files import append_json_line, os_error_as_run_error, write_text
from toolkit.interfaces import StepResult
from toolkit.train.run import Callback, Run

FILE = run_files.METRICS


class MetricsCallback(Callback):
    """Appends a line per step; after a resume the lines of repeated steps are removed first.

    `time` of a line is when it was written: some steps late where metrics are buffered (`Callback.on_metrics`).
    """

    def on_start(self, run: Run) -> None:
        path = run.folder / FILE
        truncate_after_step(path, run.state.step)
        with os_error_as_run_error(path):
            self._file = path.open("a", encoding="utf-8", newline="\n")

    def on_metrics(self, run: Run, result: StepResult) -> None:
        line = {
            **dict.fromkeys(("step", "epoch", "loss", "lr", "grad_norm")),  # their order in the line
            "samples": result.samples,
            "step_s": round(result.step_s, 6),
            "data_s": round(result.data_s, 6),
            "time": run_files.utc_now(),
            **{name: _finite(value) for name, value in result.logged().items()},
            "step": result.step,
            "epoch": result.epoch,
        }
        append_json_line(self._file, line | {"skipped": True} if result.skipped else line)

    def on_end(self, run: Run, finished: bool) -> None:
        self._file.close()

    def on_error(self, run: Run, error: BaseException) -> None:
        if hasattr(self, "_file"):
            self._file.close()


def truncate_after_step(path: Path, step: int) -> None:
    """Removes the lines of later steps, and one that a crash left half written."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    kept = [f"{line}\n" for line in text.splitlines() if (number := _step_of(line)) is not None and number <= step]
    if (whole := "".join(kept)) != text:
        write_text(path, whole)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Every complete line of a metrics file; none where there is no file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from (json.loads(line) for line in file if _step_of(line) is not None)


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
