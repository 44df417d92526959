"""The page /compare: two to six runs, or steps of one run, next to each other.

It shows their samples in one grid, their loss in one plot, and the keys of their jobs
whose values differ. It reads what the runs have written and makes no images: the grid
of all files of a run is made in `extensions.tools.ui.views.after`.

`extensions.tools.ui.app` serves `page`.
"""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from extensions.tools.shared.html_page import texts
from extensions.tools.shared.run_records import sample_table, settings_text
from extensions.tools.shared.series import IN_STEPS
from extensions.tools.ui.state import Ui, feed, render, run_id, ui_of, whole
from extensions.tools.ui.views.runs import cost
from toolkit.config.reading.located import ConfigNode, Diagnostics
from toolkit.config.reading.yaml_reader import read_yaml
from toolkit.errors import UserError

MOST = 6


def page(request: Request) -> Response:
    """`run`: up to six ids, each with `@step` where another than the last is wanted."""
    ui = ui_of(request)
    asked = [text for text in request.query_params.getlist("run") if text]
    if len(asked) > MOST:
        raise HTTPException(400, texts()["compare"]["too_many"].format(most=MOST))
    columns = [_column(ui, text) for text in asked]
    prompts: dict[int, str] = {}
    for column in columns:
        for index, prompt in column["prompts"].items():
            prompts.setdefault(index, prompt)
    data = [{"id": column["id"], "label": column["label"]} for column in columns]
    return render(
        request,
        "compare.html.j2",
        columns=columns,
        prompts=prompts,
        known=[
            *ui.run_ids(),
            *dict.fromkeys(
                f"{each['id']}@{step}" for each in columns for step in each["steps"]
            ),
        ],
        empty=range(len(columns), max(2, min(MOST, len(columns) + 1))),
        differences=_differences(columns),
        data=data,
    )


def _column(ui: Ui, text: str) -> dict[str, Any]:
    name, at, end = text.rpartition("@")
    step = whole(end) if at else None
    name = text if step is None else name
    run = ui.run(name)
    samples = sample_table(run.folder)
    steps = samples["steps"]
    shown = min(
        steps,
        key=lambda saved_step: abs(saved_step - (steps[-1] if step is None else step)),
        default=None,
    )
    place = steps.index(shown) if shown is not None else 0
    metrics = feed(ui, run.folder).metrics.update()
    return {
        "id": run_id(ui, run.folder),
        "label": run.name + (f" @{shown}" if step is not None else ""),
        "run": run,
        "steps": steps,
        "shown": shown,
        "files": {row["index"]: row["files"][place] for row in samples["rows"]},
        "prompts": {row["index"]: row["prompt"] for row in samples["rows"]},
        "cost": cost(ui, run),
        "seconds": metrics.total(*IN_STEPS),
        "line": next(
            (
                curve.mean
                for curve in metrics.curves(points=120)
                if curve.name == "loss"
            ),
            [],
        ),
        "settings": _settings(settings_text(run.folder)),
    }


def _settings(text: str) -> dict[str, str]:
    """Each key of a job with its value, as written; empty where it is not valid
    YAML."""
    settings: dict[str, str] = {}

    def walk(node: ConfigNode, path: str) -> None:
        inner = (
            node.value.items()
            if isinstance(node.value, dict)
            else enumerate(node.value)
        )
        for key, child in inner:
            at = f"{path}.{key}" if path else str(key)
            if isinstance(child.value, dict | list):
                walk(child, at)
            else:
                settings[at] = str(
                    child.text if child.text is not None else child.value
                )

    try:
        diagnostics = Diagnostics("config.yaml")
        root = read_yaml(text, diagnostics)
        diagnostics.raise_errors()
        if isinstance(root.value, dict | list):
            walk(root, "")
    except UserError:
        return {}
    return settings


def _differences(columns: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """The keys whose values are not the same in all columns."""
    keys = dict.fromkeys(key for column in columns for key in column["settings"])
    rows = [
        (key, [column["settings"].get(key, "") for column in columns]) for key in keys
    ]
    return [
        (key.removeprefix("config."), values)
        for key, values in rows
        if len(set(values)) > 1
    ]
