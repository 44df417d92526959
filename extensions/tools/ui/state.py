"""What all views share: the folders, the finding of a run by its id, and the filling of
templates."""

from __future__ import annotations

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
from starlette.responses import HTMLResponse, JSONResponse, Response

from extensions.tools.shared.feed import Feed
from extensions.tools.shared.html_page import as_json, environment
from extensions.tools.ui.config import MOST_PRICE, OWN
from toolkit.errors import RunError, UserError
from toolkit.extension import discover
from toolkit.files.redact import redact_text
from toolkit.files.run_files import (
    CONFIG,
    DRIFT,
    EVENTS,
    LOG,
    METRICS,
    STATUS,
    VALIDATION,
    VALIDATION_IMAGES,
)
from toolkit.files.shared_look import SharedLook
from toolkit.files.writing import folder_lock, os_error_as_run_error, read_object
from toolkit.train.run_index import RunIndex
from toolkit.train.run_reader import RunInfo, read_run

if TYPE_CHECKING:
    from extensions.tools.ui.config import UiConfig

HERE = Path(__file__).parent
THEMES = ("auto", "light", "dark")
THEME_COOKIE = "atelier_theme"

KEPT_S = 60.0
"""Seconds for which a value is kept (`Ui.kept`)."""

_BETWEEN = ":"
"""Between the folders of a job and of its process in a run's id: no file system of
Windows allows it in a name, and a name with it is found all the same, because each way
to split it is tried."""


@dataclass
class Ui:
    """The page's settings, and what it remembers while it runs. Nothing here has to
    survive a restart."""

    output: Path
    datasets: Path
    jobs: Path
    token: str
    price_per_hour: float
    is_stopping: Callable[[], bool] = lambda: False
    """Whether the page is about to end: streams end first, or they would be cut."""

    memory: dict[Any, Any] = field(default_factory=dict)
    """What views keep from one request to the next, by a key of their own."""

    @classmethod
    def of(cls, section: UiConfig, token: str) -> Ui:
        """Creates the state from the checked section."""
        output, datasets, jobs = (
            Path(text).expanduser()
            for text in (section.output, section.datasets, section.jobs)
        )
        ui = cls(output, datasets, jobs, token, section.price_per_hour)
        ui.price_per_hour = stored_price(ui.settings, section.price_per_hour)
        return ui

    @property
    def own(self) -> Path:
        """The folder of what the page itself writes: queue, thumbnails, settings."""
        return self.output / OWN

    @property
    def settings(self) -> Path:
        """The file of what is set on the page."""
        return self.own / "settings.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The block is the only one that changes a file in `own`. Raises RunError where
        the disk cannot be written."""
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

    def kept(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` gave at most KEPT_S ago: for what takes long and rarely changes.
        Those who ask meanwhile wait."""
        with self.memory.setdefault(("lock", key), Lock()):
            made_at, value = self.memory.get(("kept", key), (-math.inf, None))
            if time.monotonic() - made_at > KEPT_S:
                value = make()
                self.memory["kept", key] = time.monotonic(), value
            return value

    def shared(self, key: str, look: Callable[[], Any]) -> Any:
        """What `look` finds now; those who ask at the same time share a look."""
        return self.memory.setdefault(
            ("shared", key), SharedLook(lambda _: look())
        ).now()

    def recent(self, kind: str, key: object, make: Callable[[], Any], most: int) -> Any:
        """What `make` gave for a key, of which so many of a kind stay in memory: those
        last asked for."""
        known: dict[object, Any] = self.memory.setdefault(kind, {})
        with self.memory.setdefault(("lock", kind), Lock()):
            value = known.pop(key, None) or make()
            known[key] = value  # the last asked for is the last to go
            while len(known) > most:
                known.pop(next(iter(known)))
        return value

    def run(self, run_id: str) -> RunInfo:
        """The run of an id (`run_id`). Raises HTTPException 404 where there is none, or
        one of its files is a link that leads out of its folder: a run that came from
        elsewhere must not show this machine's files."""
        run_id = re.sub(
            r"\\x([89a-f][0-9a-f])",
            lambda match: chr(0xDC00 + int(match[1], 16)),
            run_id,
        )
        for cut in (
            None,
            *(place for place, letter in enumerate(run_id) if letter == _BETWEEN),
        ):
            if cut is None:
                names = [run_id]
            else:
                names = [run_id[:cut], run_id[cut + 1 :]]
            folder = self.output
            for name in names:
                folder = inside(folder, name)
            try:
                run = read_run(folder)
            except (RunError, OSError, ValueError):
                continue
            for name in (
                STATUS,
                METRICS,
                VALIDATION,
                VALIDATION_IMAGES,
                DRIFT,
                EVENTS,
                LOG,
                CONFIG,
            ):
                if (folder / name).is_symlink():
                    inside(folder, name)
            return run
        raise HTTPException(404, f"run {run_id!r}")


def feed(ui: Ui, folder: Path) -> Feed:
    """The feed of a run; a few of those last asked for stay in memory."""
    shared: Feed = ui.recent("feeds", folder, lambda: Feed(folder), 24)
    return shared


def stored_price(settings: Path, otherwise: float) -> float:
    """The price per hour that was set on the page."""
    with suppress(TypeError, ValueError, OverflowError):
        price = float(read_object(settings).get("price_per_hour", math.nan))
        if 0 <= price <= MOST_PRICE:
            return price
    return otherwise


def run_id(ui: Ui, folder: Path) -> str:
    """The id of a run in addresses: its folder's name, or `<job>:<process>`. Bytes that
    are not UTF-8 stand as `\\xff`: an address cannot carry them, and no other folder
    has such an id, because `inside` refuses a backslash."""
    name = _BETWEEN.join(folder.relative_to(ui.output).parts)
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def inside(folder: Path, name: str) -> Path:
    """The entry of a folder that a name from outside stands for. Raises HTTPException
    404 for a name that is none, or a link that leads out of the folder."""
    if name in ("", ".", "..") or any(bad in name for bad in "/\\\0"):
        raise HTTPException(404, "no such name")
    path = folder / name
    try:
        is_inside = path.resolve().is_relative_to(folder.resolve())
    except (
        OSError,
        RuntimeError,
        ValueError,
    ):  # a loop of links, a name that no file can have
        is_inside = False
    if not is_inside:
        raise HTTPException(404, "no such name")
    return path


def ui_of(request: Request) -> Ui:
    """The page's state."""
    ui: Ui = request.app.state.ui
    return ui


class Form(dict[str, str]):
    """The texts of a form by the names of their fields, lines ended by LF."""

    def __init__(self, data: FormData) -> None:
        """data: with files, and with all values of a name."""
        super().__init__(
            {
                key: text.replace("\r\n", "\n")
                for key, text in data.items()
                if isinstance(text, str)
            }
        )
        self.data = data


def posted(
    files: int = 0, fields: int = 5, part_size: int = 2**20
) -> Callable[
    [Callable[[Request, Form], Response]], Callable[[Request], Awaitable[Response]]
]:
    """A decorator for a view that gets the form of a request, in a thread, where it may
    wait for the disk. files, fields: at most so many; part_size: bytes of each
    field."""

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
def conflicts() -> Iterator[None]:
    """What the program refuses is answered with 409 and its words."""
    try:
        yield
    except (UserError, RunError) as error:
        raise HTTPException(409, str(error)) from error


def wants_json(request: Request) -> bool:
    """Whether a script asks."""
    return "application/json" in request.headers.get("accept", "")


def whole(text: str, least: int = 0, most: int = 10**18) -> int | None:
    """A whole number within limits, of a text from outside; None for any other text."""
    if text.isascii() and text.isdigit() and len(text) < 20:
        number = int(text)
    else:
        number = least - 1
    return number if least <= number <= most else None


class Json(JSONResponse):
    """An answer of `as_json`."""

    def render(self, content: Any) -> bytes:
        """The body."""
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
    """The options of a list to choose from, as HTML: a loop of Jinja takes ten times as
    long for a thousand."""
    pairs = ((text, escape(text)) for text in texts)
    return "".join(
        f'<option value="{of}"{" selected" * (text == chosen)}>{of}</option>'
        for text, of in pairs
    )


_COMMAND = re.compile(r"run\.py ([a-z_]+)(?: --[a-z-]+)*")
_KEY = re.compile(r"&#x27;((?:\w+(?:\[\])?\.)*[a-z]+(?:_[a-z0-9]+)+)(?:: [^&]*)?&#x27;")
"""A key of a job in a message: in quotes, perhaps with its sections or a value."""


@cache
def _tools() -> frozenset[str]:
    return frozenset(discover().tools())


def linked(text: str, fields: Mapping[str, str] | None = None) -> str:
    """A line of the command line as HTML: commands lead to the page's tools, and keys
    to where the page has them. fields: key -> id of its field in the form; all others
    are searched for."""

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

    return _KEY.sub(
        key, _COMMAND.sub(tool, str(escape(text)))
    )  # both patterns match escaped text alone


_MARKS = "[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
_TAG_OR_MARK = re.compile(rf"(?s)<(textarea|script|style)\b.*?</\1>|<[^>]*>|{_MARKS}")


def show_marks(page: str) -> str:
    """A page on which the marks of the direction of text are seen, such as ‹U+202E›: a
    name could look as another with them. What can be edited, and attributes, keep
    them."""
    if not re.search(_MARKS, page):
        return page
    return _TAG_OR_MARK.sub(
        lambda match: match[0] if match[0][0] == "<" else f"‹U+{ord(match[0]):04X}›",
        page,
    )


def render(
    request: Request, template: str, code: int = 200, **values: Any
) -> HTMLResponse:
    """A page. template: name of a file in templates/; code: the HTTP status; values:
    what the template names."""
    theme = request.cookies.get(THEME_COOKIE)
    shared = {
        "request": request,
        "ui": ui_of(request),
        "theme": theme if theme in THEMES else THEMES[0],
    }
    shared["machine"] = request.app.state.machine
    text = show_marks(_environment().get_template(template).render(**shared, **values))
    return HTMLResponse(
        text.encode("utf-8", "backslashreplace"), code
    )  # names of files may be no text
