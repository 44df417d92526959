"""The page of a run, and the data that its script asks for.

The template (shared/pages/run.html.j2) is also the one of `run.py report`. The page is
complete without its script, which adds live values, curves and the log. The views read
the files of the run. They change only the user's marks of files, which are kept in the
page's own folder.

`extensions.tools.ui.app` serves the views. `extensions.tools.ui.views.after` calls
`page` with the values of the lower part.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from extensions.tools.shared.html_page import as_json, texts
from extensions.tools.shared.run_records import (
    diagrams,
    marks,
    page_values,
    sample_rows,
    saved_files,
    settings_text,
)
from extensions.tools.shared.series import MOST_BUCKETS
from extensions.tools.ui.chosen import Chosen
from extensions.tools.ui.commands import run_py
from extensions.tools.ui.decoder import ANIMATIONS
from extensions.tools.ui.decoder import animation as make_animation
from extensions.tools.ui.queue import CONTROL
from extensions.tools.ui.state import (
    Form,
    Json,
    Ui,
    feed,
    inside,
    posted,
    refusals,
    render,
    run_id,
    ui_of,
    whole,
)
from extensions.tools.ui.views.pictures import LARGE, picture
from extensions.tools.ui.views.runs import cost
from toolkit.data.pixels.images import ImageError
from toolkit.errors import RunError
from toolkit.files import run_files
from toolkit.files.redact import redact_text
from toolkit.files.writing import read_object, sha256_of, write_json
from toolkit.train.run_reader import RunInfo

POLL_S = 0.5
"""Seconds between two looks at a run's files."""

HEARTBEAT_S = 15.0
"""A proxy ends a stream that says nothing."""

MOST_STREAMS = 256

MOST_REFERENCES = 24
"""Runs whose control images are remembered."""

REPORT_S = 120
"""Seconds that the making of a report may take."""


def page(
    request: Request, chosen: Chosen | None, code: int = 200, **after: Any
) -> Response:
    """The whole page, complete without its script. chosen: of `chosen_file`. code: the
    HTTP status. after: what the template names of the parts in `views.after`."""
    ui, run = asked_run(request)
    id_ = run_id(ui, run.folder)
    here = f"/runs/{quote(id_, safe='')}"
    values = page_values(run, feed(ui, run.folder), here)
    steps = values["samples"]["steps"]
    best = chosen.step if chosen and chosen.why == "recommended" else None
    step = _whole(request, "step", max(steps, default=0) if best is None else best)
    other = request.query_params.get("diff", "")
    return render(
        request,
        "live.html.j2",
        code,
        **values,
        **after,
        base="base.html.j2",
        id=id_,
        cost=_cost(ui, run),
        is_stopping=(run.folder / CONTROL / "stop").exists(),
        chosen_file=chosen,
        shown=min(steps, key=lambda saved: abs(saved - step), default=0),
        animations=ANIMATIONS,
        picture=lambda file, side: (
            f"{here}/samples/{file}" + (f"?side={side}" if side else "")
        ),
        references=[
            [
                [f"{here}/references/{index}/{slot}?side={side}" for side in (960, 400)]
                for slot in range(len(paths))
            ]
            for index, paths in enumerate(references(ui, run))
        ],
        marked=_favourites(ui).get(id_, []),
        others=[name for name in ui.run_ids() if name != id_],
        difference=_difference(ui, run, other),
        other=other,
    )


def asked_run(request: Request) -> tuple[Ui, RunInfo]:
    """The page and the run of an address. Raises HTTPException for an unknown run."""
    ui = ui_of(request)
    return ui, ui.run(request.path_params["run"])


def _whole(request: Request, name: str, default: int) -> int:
    number = whole(request.query_params.get(name, ""))
    return default if number is None else number


# ------------------------------------------------------------ samples


def sample(request: Request) -> Response:
    """One sample image; with `side` a small one."""
    _, run = asked_run(request)
    name = request.path_params["name"]
    if not run_files.SAMPLE_FILE.fullmatch(name):
        raise HTTPException(404, "no such sample")
    return picture(request, inside(run.folder / run_files.SAMPLES, name))


def animation(request: Request) -> Response:
    """The samples of one prompt over the steps as an animation, to be posted."""
    ui, run = asked_run(request)
    index, kind = (request.path_params[key] for key in ("index", "kind"))
    rows = [row for row in sample_rows(run.folder)[0] if row.index == index]
    if kind not in ANIMATIONS or not rows:
        raise HTTPException(404, "no such animation")
    words = texts()["run"]
    folder = run.folder / run_files.SAMPLES
    frames = [
        (
            words["at_step"].format(step=one.step) if one.step else words["alone"],
            inside(folder, one.path.name),
        )
        for one in rows[0].samples
    ]
    try:
        with refusals(kind):
            file = make_animation(ui, frames, kind)
    except ImageError as error:
        raise HTTPException(415, redact_text(str(error))) from error
    return _download(file, f"{run.name}_{index}.{kind}")


def reference(request: Request) -> Response:
    """A reference image of a sample, which the job names; always made small, so that it
    is an image whatever it was."""
    ui, run = asked_run(request)
    paths = references(ui, run)
    index = request.path_params["index"]
    slot = request.path_params["slot"]
    if index >= len(paths) or slot >= len(paths[index]):
        raise HTTPException(404, "no such control image")
    return picture(request, paths[index][slot], LARGE)


def references(ui: Ui, run: RunInfo) -> list[list[Path]]:
    """The control images of each sample prompt, read again when the job of the run has
    changed."""
    from extensions.tools.shared.run_job import control_images

    try:
        stamp = (run.folder, run.config.stat().st_mtime_ns if run.config else 0)
    except OSError:
        return []
    images: list[list[Path]] = ui.recent(
        "references", stamp, lambda: control_images(run), MOST_REFERENCES
    )
    return images


# ------------------------------------------------------------ curves


def curves(request: Request) -> Response:
    """The diagrams of a run, of the steps `from` to `to`, each curve in at most
    `points` buckets."""
    ui, run = asked_run(request)
    end = _whole(request, "to", -1)
    bounds = (_whole(request, "from", 0), None if end < 0 else end)
    points = max(2, min(_whole(request, "points", 800), MOST_BUCKETS))
    found = (
        curve
        for series in feed(ui, run.folder).update().series
        for curve in series.curves(*bounds, points)
    )
    return Json({"diagrams": diagrams(found), "marks": marks(run.folder)})


# ------------------------------------------------------------ live


async def live(request: Request) -> Response:
    """Events as they come
    (https://html.spec.whatwg.org/multipage/server-sent-events.html); ids are
    cursors."""
    ui, run = await run_in_threadpool(asked_run, request)
    streams: set[object] = ui.memory.setdefault("streams", set())
    if len(streams) >= MOST_STREAMS:
        raise HTTPException(503, "too many watchers")
    cursor = request.headers.get("last-event-id") or request.query_params.get(
        "since", ""
    )
    headers = {"x-accel-buffering": "no", "cache-control": "no-store"}
    return StreamingResponse(
        _stream(ui, run.folder, cursor), headers=headers, media_type="text/event-stream"
    )


async def _stream(ui: Ui, folder: Path, cursor: str) -> AsyncIterator[str]:
    key = object()
    status = None
    silent = 0.0
    streams: set[object] = ui.memory["streams"]
    streams.add(key)
    try:
        yield "retry: 2000\n\n"
        while not ui.is_stopping():
            try:
                news, now = await run_in_threadpool(_news, ui, folder, cursor)
            except RunError:  # its folder is gone: the page asks again, and is told so
                return
            if now != cursor or news["status"] != status:
                cursor = now
                status = news["status"]
                silent = 0.0
                yield f"id: {cursor}\ndata: {as_json(news)}\n\n"
            elif silent >= HEARTBEAT_S:
                silent = 0.0
                yield ": still here\n\n"
            await asyncio.sleep(POLL_S)
            silent += POLL_S
    finally:
        streams.discard(key)


def _news(ui: Ui, folder: Path, cursor: str) -> tuple[dict[str, Any], str]:
    """`Feed.news`, with what the run has cost."""
    watched = feed(ui, folder)
    changes, end = watched.news(cursor)
    changes["status"]["facts"]["cost"] = _cost(ui, watched.run())
    return changes, end


def _cost(ui: Ui, run: RunInfo) -> str:
    """`cost` as the page shows it; empty where it is not known."""
    amount = cost(ui, run)
    return "" if amount is None else f"{amount:.2f}"


def news(request: Request) -> Response:
    """The same for those whose streams are cut."""
    ui, run = asked_run(request)
    changes, cursor = _news(ui, run.folder, request.query_params.get("since", ""))
    return Json({**changes, "cursor": cursor})


def log(request: Request) -> Response:
    """The whole log as a text file."""
    _, run = asked_run(request)
    return _download(run.folder / run_files.LOG, f"{run.name}-log.txt")


# ------------------------------------------------------------ files


def file(request: Request) -> Response:
    """A saved file, by ranges where that is asked for; with `hash` its SHA-256 as
    text."""
    _, run = asked_run(request)
    path = run.folder / _own_file(run, request.path_params["name"])
    if not path.resolve().is_relative_to(run.folder.resolve()):
        raise HTTPException(404, "no such file")
    if "hash" in request.query_params:
        try:
            return HTMLResponse(sha256_of(path), media_type="text/plain")
        except OSError as error:
            raise HTTPException(404, "no such file") from error
    return _download(path, path.name)


def _own_file(run: RunInfo, name: str) -> str:
    """The name of a file that the run has saved. Raises HTTPException 404 for another."""
    known = {saved.name for saved in saved_files(run.folder, hashed=False)}
    workflows = run_files.workflow_files(run.folder, run.name)
    if name not in known.union(path.name for path in workflows):
        raise HTTPException(404, "no such file")
    return name


def _download(path: Path, name: str) -> Response:
    if not path.is_file():
        raise HTTPException(404, "no such file")
    # the name of a folder may be no Unicode
    name = name.encode(errors="replace").decode()
    return FileResponse(path, filename=name, media_type="application/octet-stream")


def report(request: Request) -> Response:
    """The report of the run as one file to keep or pass on, made by the tool of that
    name."""
    _, run = asked_run(request)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        arguments = (
            "report",
            str(run.folder),
            "--output",
            str(path),
            "--hashes",
            "false",
        )
        code, _, stderr = run_py(*arguments, limit_s=REPORT_S)
        if code or not path.is_file():
            raise HTTPException(500, redact_text(stderr[-500:]))
        content = path.read_bytes()
    headers = {
        "content-disposition": f"attachment; filename*=utf-8''{quote(run.name, safe='', errors='replace')}.html"
    }
    return Response(content, headers=headers, media_type="application/octet-stream")


def _favourites(ui: Ui) -> dict[str, list[str]]:
    # names that are not a list: a file that another program has changed
    with suppress(TypeError):
        favourites = read_object(ui.own / "favourites.json")
        return {run: [str(name) for name in names] for run, names in favourites.items()}
    return {}


@posted()
def favourite(request: Request, form: Form) -> Response:
    """Marks a file, or takes the mark away that it had when it was shown, as `marked`
    says: pressed twice it counts once."""
    ui, run = asked_run(request)
    name = _own_file(run, form.get("file", ""))
    this = run_id(ui, run.folder)
    with refusals(), ui.locked():
        favourites = _favourites(ui)
        marked = [other for other in favourites.get(this, []) if other != name]
        if form.get("marked") != "true":
            marked.append(name)
        write_json(ui.own / "favourites.json", favourites | {this: marked})
    return RedirectResponse(f"/runs/{quote(this, safe='')}#files", 303)


# ------------------------------------------------------------ settings


def _difference(ui: Ui, run: RunInfo, other: str) -> list[str] | None:
    """The lines in which another run's settings differ; None: none is chosen."""
    if not other:
        return None
    ours, theirs = (
        settings_text(folder).splitlines()
        for folder in (run.folder, ui.run(other).folder)
    )
    return list(
        difflib.unified_diff(
            theirs, ours, other, run_id(ui, run.folder), lineterm="", n=1
        )
    )
