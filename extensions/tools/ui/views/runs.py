"""The first page: every run, the latest first."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from extensions.tools.ui.series import sparkline
from extensions.tools.ui.state import Json, Ui, render, run_id, ui_of, wants_json
from toolkit.files import run_files
from toolkit.train.run_reader import RunInfo, RunStatus, list_runs

_OF_JSON = ("id", "name", "status", "step", "steps", "eta_s")
_BEFORE = datetime.fromtimestamp(0, UTC)


def index(request: Request) -> Response:
    """All runs, or those whose name or state holds each word of `q`. As JSON where that is asked for."""
    ui, wanted = ui_of(request), request.query_params.get("q", "")
    words = wanted.lower().split()
    found = [
        run for run in list_runs(ui.output) if all(word in f"{run.name} {run.status.value}".lower() for word in words)
    ]
    found.sort(key=lambda run: (run.status is RunStatus.RUNNING, run.updated or _BEFORE), reverse=True)
    rows = [_row(ui, run) for run in found]
    if wants_json(request):
        return Json([{key: row[key] for key in _OF_JSON} for row in rows])
    return render(request, "runs.html.j2", rows=rows, wanted=wanted)


def _row(ui: Ui, run: RunInfo) -> dict[str, Any]:
    return {
        "id": run_id(ui, run.folder),
        "run": run,
        "name": run.name,
        "status": run.status.value,
        "step": run.step,
        "steps": run.total_steps,
        "eta_s": run.eta_s,
        "cost": cost(ui, run),
        "spark": sparkline(run.folder / run_files.METRICS),
        "sample": latest_sample(run.folder),
    }


def cost(ui: Ui, run: RunInfo) -> float | None:
    """What the steps of a run have cost at the price per hour: loading, sampling and saving not counted. None: not
    known, or no price is given."""
    if not ui.price_per_hour or not run.step or run.step_s is None:
        return None
    return run.step * run.step_s / 3600 * ui.price_per_hour


def latest_sample(folder: Path) -> str | None:
    """The file name of the first image of the newest set of samples."""
    try:
        names = os.listdir(folder / run_files.SAMPLES)
    except OSError:
        return None
    matches = filter(None, map(run_files.SAMPLE_FILE.fullmatch, names))
    found = [(int(match["step"]), -int(match["index"]), match.string) for match in matches]
    return max(found)[2] if found else None
