"""The page /queue, and the requests that stop or control a run.

Commands are queued with `enqueue`, which also starts the runner. The entries themselves
are changed by `extensions.tools.ui.queue`, and run by `extensions.tools.ui.runner`.

`extensions.tools.ui.app` serves the views. The other views call `enqueue` and
`queue_of`.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import (
    PlainTextResponse,
    RedirectResponse,
    Response,
)

from extensions.tools.shared.examples import EXAMPLES
from extensions.tools.ui.config import queue_folder
from extensions.tools.ui.entries import (
    FOLDER,
    images_of,
    job_of,
    pictures,
    run_of,
    sentence,
)
from extensions.tools.ui.path import dataset_at, path_of
from extensions.tools.ui.queue import (
    DONE,
    INTERRUPTED,
    RUNNING,
    WAITING,
    Entry,
    Queue,
    State,
    ask_run,
)
from extensions.tools.ui.state import (
    Form,
    Ui,
    done,
    posted,
    refusals,
    render,
    ui_of,
)
from extensions.tools.ui.views.first_minute import MOST_IMAGES as MOST_EARLY
from extensions.tools.ui.views.first_minute import ticks_of
from extensions.tools.ui.views.pictures import LARGE, picture
from toolkit.errors import UserError
from toolkit.files.redact import redact_text
from toolkit.files.writing import CONFIG_ROOT
from toolkit.train.run_reader import RunInfo, RunStatus
from toolkit.version import COMMAND

MOST = 100
"""Waiting entries on the page, and ended ones."""

SHORT_TAIL = 1500
"""Bytes of the output of an entry that did not end well; they stand on the page."""

QUICKSTART = EXAMPLES / "quickstart.yaml"

RUNNER_S = 8.0
"""Seconds that a runner may take to start, or to see that a job has ended."""

MOST_IMAGES = 24
"""Images of an ended entry that are shown, the last ones."""

_IMAGE = re.compile(r"^\d+/\d+ (.+\.(?:png|jpg|webp))$", re.MULTILINE)
"""How `generate` and `grid` tell each image that they have written."""

REQUESTS = ("stop", "save_now", "sample_now")


def queue_of(ui: Ui) -> Queue:
    """The queue of the runs' folder."""
    queue: Queue = ui.memory.setdefault("queue", Queue(queue_folder(ui.output)))
    return queue


def enqueue(
    ui: Ui,
    argv: list[str],
    name: str,
    cwd: Path | None = None,
    unless: Collection[State] = (WAITING,),
) -> Entry:
    """Adds an entry as `Queue.add`, and starts the runner. Raises HTTPException 409 for
    one that cannot be added."""
    queue = queue_of(ui)
    with refusals():
        entry = queue.add(argv, name, cwd, unless)
    queue.start_runner()
    return entry


def _asked(request: Request) -> tuple[Queue, Entry]:
    """The queue, and the entry of an address. Raises HTTPException 404 for an unknown
    one."""
    queue = queue_of(ui_of(request))
    return queue, _entry(queue, request.path_params["id"])


def _entry(queue: Queue, id_: str) -> Entry:
    try:
        return queue.entry(id_)
    except UserError as error:
        raise HTTPException(404, str(error)) from error


def show(request: Request) -> Response:
    """What becomes of an entry: its run as soon as there is one, until then what it
    waits for, or why there is none."""
    queue, entry = _asked(request)
    entry = queue.as_it_is(entry)
    run, id_ = run_of(ui_of(request), entry)
    if (
        run
        and entry.state != WAITING
        and (run.status is RunStatus.RUNNING or entry.state != RUNNING)
    ):
        return RedirectResponse(f"/runs/{quote(id_, safe='')}", 303)
    entries = queue.entries()
    is_waiting = entry in entries and entry.state == WAITING
    before = entries[: entries.index(entry)] if is_waiting else ()
    ui, job = ui_of(request), job_of(entry)
    is_early = job is not None and entry.state in (WAITING, RUNNING)
    has_tail = entry.attempts and not is_early
    tail = queue.tail(entry.id, SHORT_TAIL) if has_tail else ""
    data = dataset_at(ui, job.get(job.path(FOLDER))) if job and job.root else None
    images = images_of(ui, job, MOST_EARLY)
    early = {"ticks": ticks_of(job), "images": images, "how_far": "", "left": ""}
    return render(
        request,
        "entry.html.j2",
        entry=entry,
        before=before,
        tail=tail,
        path=path_of(data, "run", {"run": f"/queue/{entry.id}"}),
        early=early if is_early else None,
    )


def index(request: Request) -> Response:
    """Running, waiting and ended entries."""
    ui = ui_of(request)
    queue = queue_of(ui)
    entries = queue.now()
    begun = (RUNNING, INTERRUPTED)
    running = [_row(ui, entry) for entry in entries if entry.state in begun]
    waiting = [entry for entry in entries if entry.state == WAITING]
    ended = [entry for entry in entries if entry.state not in (*begun, WAITING)]
    shown = []
    for entry in ended[:MOST]:
        is_run = entry.state == DONE and entry.runs
        tail = "" if is_run else queue.tail(entry.id, SHORT_TAIL)
        images = _images(queue, entry)
        shown.append(_row(ui, entry) | {"tail": tail, "images": len(images)})
    changed = max(
        (path.stat().st_mtime for path in queue.folder.glob("*.json")), default=0.0
    )
    is_old = abs(time.time() - changed) > RUNNER_S
    is_idle = bool(running or waiting) and is_old and not queue.has_runner()
    return render(
        request,
        "queue.html.j2",
        running=running,
        waiting=[_row(ui, entry) for entry in waiting[:MOST]],
        waiting_count=len(waiting),
        ended=shown,
        count=len(ended),
        is_idle=is_idle,
    )


def _row(ui: Ui, entry: Entry) -> dict[str, Any]:
    """An entry as the page shows it. Of a tool the run is the one in which it works."""
    run, id_ = run_of(ui, entry)
    return {
        "entry": entry,
        "run": run if entry.runs else None,
        "run_id": id_,
        "sentence": sentence(entry, job_of(entry)),
        "pictures": pictures(ui, entry),
    }


def last_start(ui: Ui, run: RunInfo) -> Entry | None:
    """The latest entry that has started a run. None: the queue has not."""
    folder = str(run.folder.resolve())
    entries = sorted(queue_of(ui).entries(), key=lambda one: one.id, reverse=True)
    return next(
        (
            entry
            for entry in entries
            if folder in (str(Path(one).resolve()) for one in entry.runs)
        ),
        None,
    )


def _images(queue: Queue, entry: Entry) -> list[Path]:
    """The images that a tool says it has written and that still exist."""
    if entry.state != DONE or entry.runs:
        return []
    paths = (
        Path(entry.cwd) / match[1] for match in _IMAGE.finditer(queue.tail(entry.id))
    )
    return [path for path in dict.fromkeys(paths) if path.is_file()][-MOST_IMAGES:]


def result(request: Request) -> Response:
    """One of these images."""
    images = _images(*_asked(request))
    place = request.path_params["index"]
    if place >= len(images):
        raise HTTPException(404, "no such image")
    return picture(request, images[place], LARGE)


def act(request: Request) -> Response:
    """Moves, removes, stops or retries an entry."""
    queue = queue_of(ui_of(request))
    id_ = request.path_params["id"]
    action = request.path_params["action"]
    if action in ("up", "down"):
        return _done(request, queue.shift, id_, action == "up")
    if action not in ("remove", "stop", "retry"):
        raise HTTPException(404, "no such action")
    return _done(request, getattr(queue, action), id_)


def clear(request: Request) -> Response:
    """Takes the ended entries out."""
    return _done(request, queue_of(ui_of(request)).clear)


def start(request: Request) -> Response:
    """Starts the runner, which somebody may have killed."""
    return _done(request, lambda: None)


def try_mascots(request: Request) -> Response:
    """Starts the quickstart, which writes to the page's folder of runs."""
    ui = ui_of(request)
    folder = ui.output / QUICKSTART.stem
    if folder.is_dir():
        return RedirectResponse(f"/runs/{folder.name}", 303)
    argv = [str(QUICKSTART), f"--set=training_folder={ui.output.absolute()}"]
    entry = enqueue(ui, argv, QUICKSTART.stem, CONFIG_ROOT.parent)
    return RedirectResponse(f"/queue/{entry.id}", 303)


def _done(request: Request, action: Any, *arguments: object) -> Response:
    with refusals():
        action(*arguments)
    queue_of(ui_of(request)).start_runner()
    return done(request, "/queue", ok=True)


def log(request: Request) -> Response:
    """The command of an entry, and the end of what it has printed."""
    queue, entry = _asked(request)
    command = f"{COMMAND} {shlex.join(entry.shown())}"
    return PlainTextResponse(redact_text(f"{command}\n\n{queue.tail(entry.id)}"))


@posted()
def control(request: Request, form: Form) -> Response:
    """Asks a run to stop, save or sample after its next step: form field `request`."""
    wanted = form.get("request", "")
    id_ = request.path_params["id"]
    if wanted not in REQUESTS:
        raise HTTPException(400, f"request: give one of {', '.join(REQUESTS)}")
    run = ui_of(request).run(id_)
    if run.status is not RunStatus.RUNNING:
        raise HTTPException(409, "it does not run.")
    with refusals():
        ask_run(run, wanted)
    return done(request, f"/runs/{quote(id_, safe='')}", ok=True)
