"""What all views share: the folders, the finding of a run by its id, and the filling of templates."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse

from toolkit.errors import RunError
from toolkit.files.redact import redact_text
from toolkit.files.run_files import CONFIG, EVENTS, LOG, METRICS, STATUS, VALIDATION, duration
from toolkit.files.writing import read_regular, readable_size
from toolkit.train.run_reader import RunInfo, read_run

if TYPE_CHECKING:
    from extensions.tools.ui.config import UiConfig

HERE = Path(__file__).parent
THEMES = ("auto", "light", "dark")
THEME_COOKIE = "atelier_theme"

MOST_PRICE = 1e6

_BETWEEN = ":"
"""Between the folders of a job and of its process in a run's id: no file system of Windows allows it in a name, and a
name with it is found all the same, because each way to split it is tried."""


@dataclass
class Ui:
    """The page's settings, and what it remembers while it runs. Nothing here has to survive a restart."""

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
        """Of the checked section."""
        output, datasets, jobs = (Path(text).expanduser() for text in (section.output, section.datasets, section.jobs))
        ui = cls(output, datasets, jobs, token, section.price_per_hour)
        ui.price_per_hour = stored_price(ui.settings, section.price_per_hour)
        return ui

    @property
    def own(self) -> Path:
        """The folder of what the page itself writes: queue, thumbnails, settings."""
        return self.output / ".ui"

    @property
    def settings(self) -> Path:
        """The file of what is set on the page."""
        return self.own / "settings.json"

    def run(self, run_id: str) -> RunInfo:
        """The run of an id (`run_id`). Raises HTTPException 404 where there is none, or one of its files is a link that
        leads out of its folder: a run that came from elsewhere must not show this machine's files."""
        for cut in (None, *(place for place, letter in enumerate(run_id) if letter == _BETWEEN)):
            names = [run_id] if cut is None else [run_id[:cut], run_id[cut + 1 :]]
            folder = self.output
            for name in names:
                folder = inside(folder, name)
            try:
                run = read_run(folder)
            except (RunError, OSError, ValueError):
                continue
            for name in (STATUS, METRICS, VALIDATION, EVENTS, LOG, CONFIG):
                if (folder / name).is_symlink():
                    inside(folder, name)
            return run
        raise HTTPException(404, f"run {run_id!r}")


def stored_price(settings: Path, otherwise: float) -> float:
    """The price per hour that was set on the page."""
    try:
        price = float(json.loads(read_regular(settings))["price_per_hour"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return otherwise
    return price if 0 <= price <= MOST_PRICE else otherwise


def run_id(ui: Ui, folder: Path) -> str:
    """The id of a run in addresses: its folder's name, or `<job>:<process>`."""
    return _BETWEEN.join(folder.relative_to(ui.output).parts)


def inside(folder: Path, name: str) -> Path:
    """The entry of a folder that a name from outside stands for. Raises HTTPException 404 for a name that is none, or
    a link that leads out of the folder."""
    if name in ("", ".", "..") or any(bad in name for bad in "/\\\0"):
        raise HTTPException(404, "no such name")
    path = folder / name
    try:
        is_inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that no file can have
        is_inside = False
    if not is_inside:
        raise HTTPException(404, "no such name")
    return path


def ui_of(request: Request) -> Ui:
    """The page's state."""
    ui: Ui = request.app.state.ui
    return ui


def as_json(data: Any) -> str:
    """JSON of what files hold: NaN and infinite numbers, which JSON has not, as null; lone surrogates escaped."""
    try:
        return json.dumps(data, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(data))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


class Json(JSONResponse):
    """An answer of `as_json`."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return as_json(content).encode("ascii")


@cache
def texts() -> Any:
    """All words that the page says, for a translation in one place."""
    return json.loads((HERE / "texts.json").read_text(encoding="utf-8"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: "" if value is None else value,
    )
    environment.globals |= {"t": texts()}
    environment.policies["json.dumps_function"] = lambda data, **_: as_json(data)
    environment.tests["search_state"] = lambda kind: str(kind).startswith("state")
    environment.filters |= {
        "redacted": lambda text: redact_text(str(text)),
        "duration": duration,
        "size": readable_size,
        "address": lambda text: quote(str(text), safe="", errors="backslashreplace"),
        "time": lambda moment: f"{moment:%Y-%m-%d %H:%M} UTC" if moment else "",
    }
    return environment


def render(request: Request, template: str, code: int = 200, **values: Any) -> HTMLResponse:
    """A page. template: name of a file in templates/; code: the HTTP status; values: what the template names."""
    theme = request.cookies.get(THEME_COOKIE)
    shared = {"request": request, "ui": ui_of(request), "theme": theme if theme in THEMES else THEMES[0]}
    text = _environment().get_template(template).render(**shared, **values)
    return HTMLResponse(text.encode("utf-8", "backslashreplace"), code)  # names of files may be no text
