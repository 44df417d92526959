"""The addresses of the page, and the Starlette application that serves them.

`ROUTES` maps each address to a view in `extensions.tools.ui.views`. `make_app` adds the
guard and the pages for login and errors. No request is answered in this module: the
views do it, and `extensions.tools.ui.guard` decides which requests reach them.

`extensions.tools.ui.process` builds the application and runs it with uvicorn. Tests
build it to send requests without a server.
"""

from __future__ import annotations

from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from extensions.tools.shared.html_page import PAGES, texts
from extensions.tools.ui.guard import Guard, protect
from extensions.tools.ui.machine import LOOK_S, look
from extensions.tools.ui.state import HERE, Ui, render
from extensions.tools.ui.views import (
    after,
    compare,
    datasets,
    new,
    queue,
    resume,
    run,
    runs,
    shelf,
    system,
    tools,
)


def _get(path: str, view: object) -> Route:
    return Route(path, view, methods=["GET"])  # type: ignore[arg-type]  # views are functions of a request


def _post(path: str, view: object) -> Route:
    return Route(path, view, methods=["POST"])  # type: ignore[arg-type]  # as above


ROUTES = [
    _get("/", runs.index),
    _post("/start", queue.try_mascots),
    _get("/runs/{run}", after.page),
    _get("/runs/{run}/samples/{name}", run.sample),
    _get("/runs/{run}/animations/{index:int}.{kind}", run.animation),
    _get("/runs/{run}/references/{index:int}/{slot:int}", run.reference),
    _get("/runs/{run}/curves", run.curves),
    _get("/runs/{run}/live", run.live),
    _get("/runs/{run}/news", run.news),
    _get("/runs/{run}/log", run.log),
    _get("/runs/{run}/report", run.report),
    _get("/runs/{run}/files/{name:path}", run.file),
    _post("/runs/{run}/try", after.try_it),
    _get("/runs/{run}/tried", after.tried),
    _post("/runs/{run}/comfyui", after.put_into_comfyui),
    _post("/runs/{run}/compare", after.compare),
    _get("/runs/{run}/compared", after.compared),
    _get("/runs/{run}/images/{folder}/{name}", after.tried_image),
    _post("/runs/{run}/favourite", run.favourite),
    _post("/runs/{id}/resume", resume.resume),
    _post("/runs/{id}/less", resume.less_memory),
    _post("/runs/{id}/control", queue.control),
    _post("/runs/{id}/longer", shelf.longer),
    _get("/verbs/{kind}/{id}", shelf.show),
    _post("/verbs/{kind}/{id}/{verb}", shelf.act),
    _get("/trash", shelf.trash),
    _post("/trash/{kind}/{entry}", shelf.restore),
    _get("/jobs", shelf.jobs),
    _get("/compare", compare.page),
    _get("/new", new.show),
    _post("/new", new.act),
    _get("/jobs/{file}", new.opened),
    _get("/queue", queue.index),
    _post("/queue/start", queue.start),
    _post("/queue/clear", queue.clear),
    _get("/queue/{id}", queue.show),
    _get("/queue/{id}/log", queue.log),
    _get("/queue/{id}/images/{index:int}", queue.result),
    _post("/queue/{id}/{action}", queue.act),
    _get("/tools", tools.index),
    _get("/tools/{uid}", tools.show),
    _post("/tools/{uid}", tools.send),
    _get("/status", system.status),
    _get("/system", system.index),
    _post("/system/price", system.set_price),
    _post("/system/comfyui", system.set_comfyui),
    _post("/system/prune", system.prune),
    _get("/datasets", datasets.index),
    _post("/datasets", datasets.create),
    _post("/datasets/restore", datasets.restore),
    _get("/datasets/{d}", datasets.show),
    _post("/datasets/{d}/view", datasets.set_view),
    _post("/datasets/{d}/captions", datasets.save_caption),
    _post("/datasets/{d}/crop", datasets.crop),
    _post("/datasets/{d}/change", datasets.change),
    _post("/datasets/{d}/undo", datasets.undo),
    _post("/datasets/{d}/delete", datasets.delete),
    _post("/datasets/{d}/lint", datasets.check),
    _get("/datasets/{d}/lint", datasets.check_state),
    _post("/datasets/{d}/captioning", datasets.captioning),
    _post("/datasets/{d}/announce", datasets.announce),
    _get("/datasets/{d}/upload", datasets.upload_state),
    _post("/datasets/{d}/upload", datasets.upload),
    _post("/datasets/{d}/files", datasets.upload_form),
    _get("/datasets/{d}/images/{name:path}", datasets.image),
    _get("/datasets/{d}/thumbs/{name:path}", datasets.thumb),
    _post("/theme", system.set_theme),
    _get("/healthz", system.healthz),
    Mount("/static/pages", GZipMiddleware(StaticFiles(directory=PAGES))),
    Mount("/static/mascots", StaticFiles(directory=runs.PICTURES, check_dir=False)),
    Mount("/static", GZipMiddleware(StaticFiles(directory=HERE / "static"))),
]
"""All addresses. A GET request changes nothing. The guard protects every address except
/login, /healthz and /static/."""


def make_app(ui: Ui) -> Starlette:
    """Creates the application for the page's settings, with its guard and error
    pages."""
    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(Guard, token=ui.token, login_page=login_page)],
        exception_handlers={HTTPException: error_page, Exception: error_page},
    )
    app.state.ui = ui
    look_here = partial(look, ui.output)
    app.state.machine = lambda: ui.kept("machine", look_here, LOOK_S)
    return app


def login_page(request: Request, status: int, fault: str) -> Response:
    """The page that asks for the token.

    fault: key of the text that says what went wrong; empty: nothing.
    """
    return render(request, "login.html.j2", status, fault=fault)


def error_page(request: Request, error: Exception) -> Response:
    """The answer to a request that failed: a page for browsers, one line for scripts.

    The traceback of a defect is written to the log and never sent to the browser.
    """
    status, detail = 500, ""
    if isinstance(error, HTTPException):
        status, detail = error.status_code, error.detail
    if "text/html" not in request.headers.get("accept", ""):
        answer: Response = PlainTextResponse(
            f"{detail or texts()['errors']['defect']}\n", status
        )
    else:
        answer = render(request, "error.html.j2", status, status=status, detail=detail)
    protect(answer.headers)  # the answer to a defect does not pass through the guard
    return answer
