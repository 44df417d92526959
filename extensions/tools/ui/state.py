"""The state that all views share, and the parts of a view that are always the same.

`Ui` holds the folders, the settings, and the memory of the page. Around it are: ids of
runs and the names that may come from outside (`run_id`, `inside`), forms (`posted`,
`Form`), errors (`refusals`), and the rendering of templates (`render`). No page is
made here, and nothing that is kept in memory has to survive a restart.

Every module in `extensions.tools.ui.views` uses it. `extensions.tools.ui.process`
creates the `Ui`, and the datasets, the decoder and the guard need parts of it.
"""

from __future__ import annotations

import errno
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, wraps
from html import escape
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from jinja2 import Environment
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    RedirectResponse,
    Response,
)

from extensions.tools.shared.feed import Feed
from extensions.tools.shared.html_page import as_json, environment
from extensions.tools.ui.config import MOST_PRICE, OWN
from toolkit.errors import RunError, UserError
from toolkit.extension import discover
from toolkit.files.redact import redact_text
from toolkit.files.run_files import (
    CONFIG,
    EVENTS,
    LOG,
    METRICS,
    STATUS,
    VALIDATION,
    VALIDATION_IMAGES,
)
from toolkit.files.shared_look import SharedLook
from toolkit.files.writing import (
    folder_lock,
    os_error_as_run_error,
    read_object,
    write_json,
)
from toolkit.train.run_index import RunIndex
from toolkit.train.run_reader import RunInfo, read_run

if TYPE_CHECKING:
    from extensions.tools.ui.config import UiConfig

HERE = Path(__file__).parent
THEMES = ("auto", "light", "dark")
THEME_COOKIE = "atelier_theme"

KEPT_S = 60.0
"""Seconds after which most values are made again (`Ui.kept`)."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_BETWEEN = ":"
"""Separates the folder of a job and of its process in the id of a run. File systems of
Windows do not allow it in a name. A name that contains it is found nevertheless,
because each way to split the id is tried."""


_RUN_FILES = (
    STATUS,
    METRICS,
    VALIDATION,
    VALIDATION_IMAGES,
    EVENTS,
    LOG,
    CONFIG,
)


@dataclass
class Ui:
    """The page's settings and memory. Nothing in it has to survive a restart.

    Example::

        ui = Ui.of(section, token())  # the checked section of `run.py ui`
        for run in ui.runs():
            print(run_id(ui, run.folder), run.status)
    """

    output: Path
    datasets: Path
    jobs: Path
    token: str
    price_per_hour: float
    is_stopping: Callable[[], bool] = lambda: False
    """Whether the page is about to end. Open streams then end by themselves."""

    memory: dict[Any, Any] = field(default_factory=dict)
    """Values that views keep from one request to the next. Each view has its own
    keys."""

    @classmethod
    def of(cls, section: UiConfig, token: str) -> Ui:
        """Creates the state from the checked section."""
        ui = cls(
            output=Path(section.output).expanduser(),
            datasets=Path(section.datasets).expanduser(),
            jobs=Path(section.jobs).expanduser(),
            token=token,
            price_per_hour=section.price_per_hour,
        )
        ui.price_per_hour = stored_price(ui.settings, section.price_per_hour)
        return ui

    @property
    def own(self) -> Path:
        """The folder of the page's own files: queue, thumbnails, settings."""
        return self.output / OWN

    @property
    def settings(self) -> Path:
        """The file of the settings that are made on the page."""
        return self.own / "settings.json"

    def keep(self, **settings: object) -> None:
        """Keeps settings that are made on the page. Raises RunError as `locked`."""
        with self.locked():
            write_json(self.settings, read_object(self.settings) | settings)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock for changes of files in `own`. Raises RunError if the disk
        cannot be written."""
        with os_error_as_run_error(self.own):
            self.own.mkdir(parents=True, exist_ok=True)
        with folder_lock(self.own):
            yield

    def runs(self) -> tuple[RunInfo, ...]:
        """All runs, in the order of their paths."""
        index: RunIndex = self.memory.setdefault("runs", RunIndex(self.output))
        return index.runs()

    def run_ids(self) -> tuple[str, ...]:
        """The ids of all runs."""
        runs = self.runs()
        of, ids = self.memory.get("ids", ((), ()))
        if of is not runs:
            ids = tuple(run_id(self, run.folder) for run in runs)
            self.memory["ids"] = runs, ids
        return tuple(ids)

    def kept(self, key: str, make: Callable[[], Any], most_s: float = KEPT_S) -> Any:
        """The value of `make()`, at most `most_s` seconds old: for values that take long
        and rarely change. Other requests wait while it is made."""
        with self.memory.setdefault(("lock", key), Lock()):
            made_at, value = self.memory.get(("kept", key), (-math.inf, None))
            if time.monotonic() - made_at > most_s:
                value = make()
                self.memory["kept", key] = time.monotonic(), value
            return value

    def shared(self, key: str, look: Callable[[], Any]) -> Any:
        """The value of `look()` as it is now. Requests at the same time share one
        call."""
        shared_look = SharedLook(lambda _: look())
        return self.memory.setdefault(("shared", key), shared_look).now()

    def recent(self, kind: str, key: object, make: Callable[[], Any], most: int) -> Any:
        """The value of `make()` for a key, made once while it stays in memory.

        most: number of values of this kind in memory. The one that was not asked for
        the longest is dropped.
        """
        known: dict[object, Any] = self.memory.setdefault(kind, {})
        with self.memory.setdefault(("lock", kind), Lock()):
            value = known.pop(key, None) or make()
            known[key] = value  # at the end, so it is dropped last
            while len(known) > most:
                known.pop(next(iter(known)))
        return value

    def run(self, run_id: str) -> RunInfo:
        """The run with an id (`run_id`).

        Raises HTTPException 404 for an unknown id. It does so as well if one of the
        run's files is a link that leads out of its folder: a run that was copied from
        another machine must not show this machine's files.
        """
        run_id = re.sub(
            r"\\x([89a-f][0-9a-f])",
            lambda match: chr(0xDC00 + int(match[1], 16)),
            run_id,
        )
        splits = [[run_id]]
        for place, letter in enumerate(run_id):
            if letter == _BETWEEN:
                splits.append([run_id[:place], run_id[place + 1 :]])
        for names in splits:
            folder = self.output
            for name in names:
                folder = inside(folder, name)
            try:
                run = read_run(folder)
            except (RunError, OSError, ValueError):
                continue
            for name in _RUN_FILES:
                if (folder / name).is_symlink():
                    inside(folder, name)
            return run
        raise HTTPException(404, f"run {run_id!r}")


def feed(ui: Ui, folder: Path) -> Feed:
    """The feed of a run. Those of the last runs that were asked for stay in memory."""
    shared: Feed = ui.recent("feeds", folder, lambda: Feed(folder), 24)
    return shared


def stored_price(settings: Path, otherwise: float) -> float:
    """The price per hour that was set on the page; `otherwise` if there is none."""
    with suppress(TypeError, ValueError, OverflowError):
        price = float(read_object(settings).get("price_per_hour", math.nan))
        if 0 <= price <= MOST_PRICE:
            return price
    return otherwise


def run_id(ui: Ui, folder: Path) -> str:
    """The id of a run in addresses: the name of its folder, or `<job>:<process>`.

    Bytes that are not UTF-8 are written as `\\xff`, because an address cannot contain
    them. No other folder has such an id: `inside` refuses a backslash.
    """
    name = _BETWEEN.join(folder.relative_to(ui.output).parts)
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def inside(folder: Path, name: str) -> Path:
    """The path of a file or folder whose name comes from outside.

    Raises HTTPException 404 for a name that is not a single plain one, or a link that
    leads out of the folder.

    Example::

        inside(run.folder, "config.yaml")  # run.folder / "config.yaml"
        inside(run.folder, "../secret")  # HTTPException 404
    """
    if name in ("", ".", "..") or any(bad in name for bad in "/\\\0"):
        raise HTTPException(404, "no such name")
    path = folder / name
    try:
        is_inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):
        is_inside = False  # a loop of links, or a name that no file can have
    if not is_inside:
        raise HTTPException(404, "no such name")
    return path


def ui_of(request: Request) -> Ui:
    """The page's state, for a request."""
    ui: Ui = request.app.state.ui
    return ui


class Form(dict[str, str]):
    r"""The texts of a form by the names of their fields. Lines end with LF.

    >>> Form(FormData([("name", "cat"), ("caption", "a cat\r\non a mat")]))
    {'name': 'cat', 'caption': 'a cat\non a mat'}
    """

    def __init__(self, data: FormData) -> None:
        """data: the whole form, which stays in `data`. It also has the files, and all
        values of a name."""
        super().__init__()
        for key, text in data.items():
            if isinstance(text, str):
                self[key] = text.replace("\r\n", "\n")
        self.data = data


def posted(
    files: int = 0, fields: int = 5, part_size: int = 2**20
) -> Callable[
    [Callable[[Request, Form], Response]], Callable[[Request], Awaitable[Response]]
]:
    """A decorator for a view of a form. The view runs in a thread, so it may wait for the
    disk.

    files, fields: maximum number of files and fields. part_size: maximum size of a field
    in bytes.

    Example::

        @posted(fields=2)
        def rename(request: Request, form: Form) -> Response:
            return RedirectResponse(f"/runs/{form['name']}", 303)
    """

    def wrapped(
        view: Callable[[Request, Form], Response],
    ) -> Callable[[Request], Awaitable[Response]]:
        @wraps(view)
        async def answer(request: Request) -> Response:
            async with request.form(
                max_files=files, max_fields=fields, max_part_size=part_size
            ) as data:
                return await run_in_threadpool(view, request, Form(data))

        return answer

    return wrapped


@contextmanager
def refusals(what: str = "") -> Iterator[None]:
    """Turns an error of the block into HTTPException with its text: 507 for a full disk,
    403 for another error of the disk, 409 for any other UserError or RunError.

    what: what could not be written; it is put before an error of the disk.
    """
    try:
        yield
    except (UserError, RunError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise HTTPException(409, str(error)) from error
        detail = f"{what}: {cause.strerror or error}" if what else str(error)
        status = 507 if cause.errno in _FULL else 403
        raise HTTPException(status, redact_text(detail)) from error


def wants_json(request: Request) -> bool:
    """Whether a request asks for JSON, as scripts do."""
    return "application/json" in request.headers.get("accept", "")


def done(request: Request, address: str, **facts: object) -> Response:
    """The answer to a request that has changed something: the facts for a script, or
    the page at an address of this server."""
    if wants_json(request):
        return JSONResponse(facts)
    return RedirectResponse(address, 303)


def whole(text: str, least: int = 0, most: int = 10**18) -> int | None:
    """A text from outside as a whole number within limits. None: it is not one.

    >>> whole("12"), whole("-1"), whole("200", most=100)
    (12, None, None)
    """
    is_number = text.isascii() and text.isdigit() and len(text) < 20
    number = int(text) if is_number else least - 1
    return number if least <= number <= most else None


class Json(JSONResponse):
    """A JSON answer, written by `as_json`.

    >>> Json({"step": 100}).body
    b'{"step": 100}'
    """

    def render(self, content: Any) -> bytes:
        """The body of the answer."""
        return as_json(content).encode("ascii")


@cache
def _environment() -> Environment:
    templates = environment(HERE / "templates")
    templates.filters |= {
        "linked": lambda text, fields=None: linked(redact_text(str(text)), fields),
        "options": options,
    }
    return templates


def options(texts: Iterable[str], chosen: str = "") -> str:
    """The `<option>` elements of these texts. For a thousand of them this is ten times
    faster than a loop in a template.

    >>> options(["auto", "dark"], chosen="dark")
    '<option value="auto">auto</option><option value="dark" selected>dark</option>'
    """
    elements = []
    for text in texts:
        selected = " selected" if text == chosen else ""
        label = escape(text)
        elements.append(f'<option value="{label}"{selected}>{label}</option>')
    return "".join(elements)


_COMMAND = re.compile(r"run\.py ([a-z_]+)(?: --[a-z-]+)*")
_KEY = re.compile(r"&#x27;((?:\w+(?:\[\])?\.)*[a-z]+(?:_[a-z0-9]+)+)(?:: [^&]*)?&#x27;")
"""A key of a job in a message: in quotes, with its sections and its value if they are
named."""


@cache
def _tools() -> frozenset[str]:
    return frozenset(discover().tools())


def linked(text: str, fields: Mapping[str, str] | None = None) -> str:
    """A message of the program as HTML, with links.

    The name of a command becomes a link to the page of the tool. A key of a job becomes
    a link to its field, or a button that searches for it. fields: key -> id of its field
    in the form.
    """

    def tool(match: re.Match[str]) -> str:
        if match[1] in _tools():
            return f'<a href="/tools/{match[1]}">{match[1]}</a>'
        return match[0]

    def key(match: re.Match[str]) -> str:
        name = match[1].rpartition(".")[2]
        for field_key, place in (fields or {}).items():
            if match[1] in (field_key, field_key.rpartition(".")[2]):
                return f'<a href="#{place}">{match[0]}</a>'
        return f'<button name="action" value="search:{name}" formaction="/new#keys" class="key">{match[0]}</button>'

    # Both patterns match escaped text only.
    return _KEY.sub(key, _COMMAND.sub(tool, str(escape(text))))


_MARKS = "[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
_TAG_OR_MARK = re.compile(rf"(?s)<(textarea|script|style)\b.*?</\1>|<[^>]*>|{_MARKS}")


def show_marks(page: str) -> str:
    """A page with invisible marks of the text direction written as ‹U+202E›.

    With such marks one name could look like another. They stay in attributes and in
    texts that can be edited.
    """
    if not re.search(_MARKS, page):
        return page

    def visible(match: re.Match[str]) -> str:
        if match[0].startswith("<"):
            return match[0]
        return f"‹U+{ord(match[0]):04X}›"

    return _TAG_OR_MARK.sub(visible, page)


def render(
    request: Request, template: str, code: int = 200, **values: Any
) -> HTMLResponse:
    """A page from a template.

    template: name of a file in `templates/`. code: the HTTP status. values: variables of
    the template, in addition to the request, the state, the theme and the machine.
    """
    theme = request.cookies.get(THEME_COOKIE)
    page = (
        _environment()
        .get_template(template)
        .render(
            request=request,
            ui=ui_of(request),
            theme=theme if theme in THEMES else THEMES[0],
            machine=request.app.state.machine,
            **values,
        )
    )
    # Names of files may contain bytes that are not UTF-8.
    return HTMLResponse(show_marks(page).encode("utf-8", "backslashreplace"), code)
