"""The page /compare: two to six runs, or steps of one run, next to each other.

It shows their samples in one grid, their loss in one plot, and the keys of their jobs
whose values differ. It reads what the runs have written and makes no images: the grid
of all files of a run is made in `extensions.tools.ui.views.after`.

`extensions.tools.ui.app` serves `page`.
"""

from __future__ import annotations

from collections import Counter
from itertools import zip_longest
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from extensions.tools.shared.html_page import texts
from extensions.tools.shared.run_records import sample_table, settings_text
from extensions.tools.shared.series import IN_STEPS
from extensions.tools.ui.job_text import JobText
from extensions.tools.ui.state import Ui, feed, render, run_id, ui_of, whole
from extensions.tools.ui.views.runs import cost

MOST = 6


def page(request: Request) -> Response:
    """`run`: up to six ids, each with `@step` where another than the last is wanted."""
    ui = ui_of(request)
    asked = [text for text in request.query_params.getlist("run") if text]
    if len(asked) > MOST:
        raise HTTPException(400, texts()["compare"]["too_many"].format(most=MOST))
    columns = [_column(ui, text) for text in asked]
    steps = [f"{each['id']}@{step}" for each in columns for step in each["steps"]]
    return render(
        request,
        "compare.html.j2",
        columns=columns,
        rows=_rows([column["files"] for column in columns]),
        known=[*ui.run_ids(), *dict.fromkeys(steps)],
        empty=range(len(columns), max(2, min(MOST, len(columns) + 1))),
        differences=_differences(columns),
        data=[{"id": each["id"], "label": each["label"]} for each in columns],
    )


def _column(ui: Ui, text: str) -> dict[str, Any]:
    name, at, end = text.rpartition("@")
    step = whole(end) if at else None
    name = text if step is None else name
    run = ui.run(name)
    samples = sample_table(run.folder)
    steps = samples["steps"]
    wanted = steps[-1] if steps and step is None else step or 0
    shown = min(steps, key=lambda saved: abs(saved - wanted), default=None)
    place = steps.index(shown) if shown is not None else 0
    metrics = feed(ui, run.folder).metrics.update()
    curves = {curve.name: curve.mean for curve in metrics.curves(points=120)}
    return {
        "id": run_id(ui, run.folder),
        "label": run.name + (f" @{shown}" if step is not None else ""),
        "run": run,
        "steps": steps,
        "shown": shown,
        "files": _by_prompt(samples["rows"], place),
        "cost": cost(ui, run),
        "seconds": metrics.total(*IN_STEPS),
        "line": curves.get("loss", []),
        "settings": _settings(settings_text(run.folder)),
    }


def _rows(columns: list[dict[tuple[str, int], Any]]) -> list[tuple[str, Any]]:
    """The rows of the grid: a prompt that two runs share with the files of all, then
    the others side by side, each file with its own prompt."""
    counts = Counter(key for files in columns for key in files)
    shared = [key for key, count in counts.items() if count > 1]
    rows = [(key[0], [(files.get(key), "") for files in columns]) for key in shared]
    alone = [
        [(file, key[0]) for key, file in files.items() if counts[key] == 1]
        for files in columns
    ]
    return [*rows, *(("", row) for row in zip_longest(*alone, fillvalue=(None, "")))]


def _by_prompt(rows: list[dict[str, Any]], place: int) -> dict[tuple[str, int], Any]:
    """The files of a step by their prompt, and by the number of equal prompts before:
    two runs may have their prompts in another order."""
    found: dict[tuple[str, int], Any] = {}
    for row in rows:
        before = sum(prompt == row["prompt"] for prompt, _ in found)
        found[row["prompt"], before] = row["files"][place]
    return found


def _settings(text: str) -> dict[str, str]:
    """Each key of a job with its value, as written; empty where it is not valid
    YAML."""
    job = JobText(text)
    return {".".join(map(str, path)): job.get(path) for path in job.leaves()}


def _differences(columns: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """The keys whose values are not the same in all columns."""
    keys = dict.fromkeys(key for column in columns for key in column["settings"])
    rows = {
        key.removeprefix("config."): [each["settings"].get(key, "") for each in columns]
        for key in keys
    }
    return [(key, values) for key, values in rows.items() if len(set(values)) > 1]
