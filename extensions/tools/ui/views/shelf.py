"""The pages where a run, a dataset or a job is renamed, cloned or deleted, the list of
job files, and the trash.

What is done is done by `extensions.tools.ui.shelf`, which the commands `run.py runs`,
`datasets` and `jobs` call too.

`extensions.tools.ui.app` serves the views. `extensions.tools.ui.views.runs` calls
`count_trashed`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from extensions.tools.ui import shelf
from extensions.tools.ui.datasets import TRASH
from extensions.tools.ui.shelf import ONE, Kind, Shelf
from extensions.tools.ui.state import Form, Ui, posted, refusals, render, run_id, ui_of
from extensions.tools.ui.views.queue import enqueue
from toolkit.errors import RunError, UserError

KINDS: tuple[Kind, ...] = ("runs", "datasets", "jobs")


def shelf_of(ui: Ui) -> Shelf:
    """The folders of the page."""
    return Shelf(ui.output, ui.datasets, ui.jobs)


def count_trashed(ui: Ui) -> int:
    """How many runs can be restored."""
    return len(shelf.trashed(shelf_of(ui), "runs"))


def _asked(request: Request) -> tuple[Ui, Kind, str]:
    """The kind and the name of an address. Raises HTTPException 404 for an unknown
    one."""
    ui, id_ = ui_of(request), request.path_params["id"]
    kind = next((k for k in KINDS if k == request.path_params["kind"]), None)
    if kind == "runs":
        return ui, kind, ui.run(id_).folder.relative_to(ui.output).as_posix()
    if kind is None:
        raise HTTPException(404, "no such kind")
    return ui, kind, id_


def show(request: Request, fault: str = "", code: int = 200) -> Response:
    """What can be done with one, and how much a deletion moves."""
    ui, kind, name = _asked(request)
    with refusals():
        path = shelf.find(shelf_of(ui), kind, name)
    size, files = shelf.size_of(path)
    shown: dict[str, Any] = {
        "kind": kind,
        "name": path.stem if kind == "jobs" else name,
    }
    shown |= {"id": request.path_params["id"], "back": _address(ui, kind, path)}
    shown |= {"trash": shelf_of(ui).home(kind) / TRASH, "fault": fault}
    return render(request, "verbs.html.j2", code, size=size, files=files, **shown)


def _address(ui: Ui, kind: Kind, path: Path) -> str:
    """The page of a run, a dataset or a job file."""
    name = run_id(ui, path) if kind == "runs" else path.name
    return f"/{kind}/{quote(name, safe='')}"


@posted()
def act(request: Request, form: Form) -> Response:
    """Renames, clones or deletes one, and shows what comes of it."""
    ui, kind, name = _asked(request)
    verb, new = request.path_params["verb"], form.get("name", "").strip()
    folders = shelf_of(ui)
    try:
        if verb == "delete":
            shelf.delete(folders, kind, name)
            return RedirectResponse("/trash", 303)
        if verb not in ("rename", "clone"):
            raise HTTPException(404, "no such verb")
        path = getattr(shelf, verb)(folders, kind, name, new)
    except (UserError, RunError) as error:
        return show(request, str(error), 409)
    shown: Kind = "jobs" if (kind, verb) == ("runs", "clone") else kind
    return RedirectResponse(_address(ui, shown, path), 303)


def trash(request: Request) -> Response:
    """What was deleted, and the button that brings it back."""
    folders = shelf_of(ui_of(request))
    known = [(kind, one) for kind in KINDS for one in shelf.trashed(folders, kind)]
    known.sort(key=lambda each: each[1].entry, reverse=True)
    return render(request, "trash.html.j2", known=known)


def restore(request: Request) -> Response:
    """Brings one back."""
    ui, kind, entry = ui_of(request), request.path_params["kind"], request.path_params["entry"]  # fmt: skip
    if kind not in ONE:
        raise HTTPException(404, "no such kind")
    with refusals():
        path = shelf.restore(shelf_of(ui), kind, entry)
    return RedirectResponse(_address(ui, kind, path), 303)


def jobs(request: Request) -> Response:
    """The job files of the page's folder."""
    folders = shelf_of(ui_of(request))
    found = [path for _, path in shelf.listed(folders, "jobs")]
    return render(request, "jobs.html.j2", jobs=found)


@posted()
def longer(request: Request, form: Form) -> Response:
    """Gives a run more steps, and puts it into the queue."""
    ui = ui_of(request)
    run = ui.run(request.path_params["id"])
    name = run.folder.relative_to(ui.output).as_posix()
    with refusals():
        argv = shelf.longer(shelf_of(ui), name, form.get("steps", "").strip())
    entry = enqueue(ui, argv, run.name)
    return RedirectResponse(f"/queue/{entry.id}", 303)
