"""Writes metrics.jsonl, one line per optimizer step.

`MetricsCallback` only writes; `run_reader.rows_by_step` reads. `append_row` and
`truncate_after_step` keep any `.jsonl` file of a run consistent after a resume:
validation.jsonl uses them too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.contracts.training import StepResult
from toolkit.files import run_files
from toolkit.files.writing import append_json_line, atomic_write, os_error_as_run_error
from toolkit.train.run import Callback, Run
from toolkit.train.run_reader import row_of, step_of_row


class MetricsCallback(Callback):
    """Appends a line per step; after a resume the lines of repeated steps are removed
    first.

    `time` of a line is when it was written: some steps late where metrics are buffered
    (`Callback.on_metrics`).

    Example::

        run.callbacks = [MetricsCallback(), saving]
        train(run, source, step)
        with rows_by_step(run.folder / METRICS) as rows:
            losses = [row["loss"] for row in rows]
    """

    def on_start(self, run: Run) -> None:
        path = run.folder / run_files.METRICS
        truncate_after_step(path, run.state.step)
        with os_error_as_run_error(path):
            self._file = path.open("a", encoding="utf-8", newline="\n")

    def on_metrics(self, run: Run, result: StepResult) -> None:
        line = {
            # These come first in the line.
            **dict.fromkeys(("step", "epoch", "loss", "lr", "grad_norm")),
            "samples": result.samples,
            "step_s": round(result.step_s, 6),
            "data_s": round(result.data_s, 6),
            **({"compile_s": round(result.compile_s, 6)} if result.compile_s else {}),
            "time": run_files.utc_now(),
            **_without_nan(result.logged()),
            "step": result.step,
            "epoch": result.epoch,
        }
        append_json_line(
            self._file, line | {"skipped": True} if result.skipped else line
        )

    def on_end(self, run: Run, finished: bool) -> None:
        self._file.close()

    def on_error(self, run: Run, error: BaseException) -> None:
        if hasattr(self, "_file"):
            self._file.close()


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with null for each number that is not finite: JSON has no NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def truncate_after_step(path: Path, step: int) -> None:
    """Removes the lines of later steps, lines without a step, and one that a crash left
    half written. A missing file is ignored. Raises RunError when the file cannot be
    written; it is replaced as a whole."""
    if not path.exists():
        return

    def stays(line: bytes) -> bool:
        return 0 <= step_of_row(row_of(line) or {}) <= step

    with path.open("rb") as file:
        if all(line.endswith(b"\n") and stays(line) for line in file):
            return
        file.seek(0)
        with (
            os_error_as_run_error(path),
            atomic_write(path) as temporary,
            temporary.open("wb") as out,
        ):
            out.writelines(line.rstrip() + b"\n" for line in file if stays(line))


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Appends the line of a step, instead of one that is there: a resume may repeat it.
    JSON has no NaN: a number that is not finite becomes null. Raises RunError where it
    cannot be written."""
    row = _without_nan(row)
    truncate_after_step(path, row["step"] - 1)
    with (
        os_error_as_run_error(path),
        path.open("a", encoding="utf-8", newline="\n") as file,
    ):
        append_json_line(file, row)
