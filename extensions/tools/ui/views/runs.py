"""The first page: all runs, the latest first, fifty on a page.

It shows of each run its first sample and its latest one, its name and status. A
script can ask for the same list as JSON. The page of one run is
`extensions.tools.ui.views.run`.

`extensions.tools.ui.app` serves `index`. Other views call `cost`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from extensions.tools.shared.examples import EXAMPLES
from extensions.tools.ui.entries import sample_ends
from extensions.tools.ui.state import Json, Ui, render, run_id, ui_of, wants_json, whole
from extensions.tools.ui.uploads import LEFT_OUT, MOST_BYTES, PIECE
from extensions.tools.ui.views.shelf import count_trashed
from toolkit.files import run_files
from toolkit.rounding import ceil_divide
from toolkit.train.run_index import is_fresh, mark_of
from toolkit.train.run_reader import RunInfo, RunStatus

PER_PAGE = 50
PICTURES = EXAMPLES / "mascots" / "pipo"
"""Images that the first page shows before the first training."""

MOST_KEPT = 500
"""Runs whose lines are kept."""

_BEFORE = datetime.fromtimestamp(0, UTC)


def index(request: Request) -> Response:
    """All runs, or those whose name or state holds each word of `q`: a page of them, or
    all as JSON where that is asked for."""
    ui = ui_of(request)
    wanted = request.query_params.get("q", "")
    words = wanted.lower().split()
    runs = [
        run
        for run in ui.runs()
        if all(word in f"{run.name} {run.status.value}".lower() for word in words)
    ]
    runs.sort(
        key=lambda run: (run.status is RunStatus.RUNNING, run.updated or _BEFORE),
        reverse=True,
    )
    if wants_json(request):
        return Json([_facts(ui, run) for run in runs])
    pages = max(1, ceil_divide(len(runs), PER_PAGE))
    page = min(max(1, whole(request.query_params.get("page", "")) or 1), pages)
    rows = [_row(ui, run) for run in runs[(page - 1) * PER_PAGE : page * PER_PAGE]]
    return render(
        request,
        "runs.html.j2",
        rows=rows,
        wanted=wanted,
        page=page,
        pages=pages,
        count=len(runs),
        trashed=count_trashed(ui),
        mascots=sorted(path.name for path in PICTURES.glob("*.png"))[:9],
        most=MOST_BYTES,
        piece=PIECE,
        skipped=LEFT_OUT,
    )


def _facts(ui: Ui, run: RunInfo) -> dict[str, Any]:
    return {
        "id": run_id(ui, run.folder),
        "name": run.name,
        "status": run.status.value,
        "step": run.step,
        "steps": run.total_steps,
        "eta_s": run.eta_s,
        "now": run.now.line() if run.now else "",
    }


def _row(ui: Ui, run: RunInfo) -> dict[str, Any]:
    """What a page shows of a run; its samples are looked for again when their folder has
    changed."""
    known = ui.memory.setdefault("rows", {})
    mark = mark_of(str(run.folder), run_files.SAMPLES)
    known_mark, shown = known.get(run.folder, ((), {}))
    if known_mark != mark or is_fresh(mark):
        if len(known) > MOST_KEPT:
            known.clear()
        shown = {"samples": sample_ends(run.folder)}
        known[run.folder] = mark, shown
    return {**_facts(ui, run), "run": run, "cost": cost(ui, run), **shown}


def cost(ui: Ui, run: RunInfo) -> float | None:
    """What the steps of a run have cost at the price per hour: loading, sampling and
    saving not counted. None: not known, or no price is given."""
    if not ui.price_per_hour or not run.step or run.step_s is None:
        return None
    return run.step * run.step_s / 3600 * ui.price_per_hour
