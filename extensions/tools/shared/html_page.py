"""Pages that a browser opens: one file each that needs no server. Imports no torch.

`page` fills a template (Jinja2), in which every text is escaped, and puts the page's
own style and script into it. A policy in the document (https://www.w3.org/TR/CSP3/)
forbids the browser to load anything but images next to the page, and to run any script
but the page's own, whatever a caption, a prompt or a file name holds. The parts that
pages share are in pages/, which `run.py ui` serves too.

`align`, `grid`, `lint` and `report` write such pages. `ui` takes the
texts, the templates and the JSON functions from here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from toolkit.files.redact import redact_text
from toolkit.files.run_files import about, duration
from toolkit.files.writing import open_regular, readable_size

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL.Image import Image

PAGES = Path(__file__).parent / "pages"
_GENERATOR = '<meta name="generator" content="Atelier">'


@cache
def texts() -> Any:
    """All texts of the program's pages, which are in one file for translation."""
    return json.loads((PAGES / "texts.json").read_text(encoding="utf-8"))


@cache
def environment(*folders: Path) -> Environment:
    """The Jinja2 environment for the templates of these folders and of pages/. In the
    templates `t` are the `texts`. Of the indentation of a line one space is served."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from jinja2.ext import Extension

    class OneSpace(Extension):
        def preprocess(
            self, source: str, name: str | None, filename: str | None = None
        ) -> str:
            return re.sub(r"\n +", "\n ", source)

    templates = Environment(
        extensions=[OneSpace],
        loader=FileSystemLoader([*folders, PAGES]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: "" if value is None else value,
    )
    templates.globals |= {"t": texts()}
    templates.policies["json.dumps_function"] = lambda data, **_: as_json(data)
    templates.tests["search_state"] = lambda kind: str(kind).startswith("state")
    templates.filters |= {
        "redacted": lambda text: redact_text(str(text)),
        "duration": duration,
        "about": about,
        "points": points,
        "size": readable_size,
        "address": lambda text: quote(str(text), safe="", errors="backslashreplace"),
        "time": moment,
    }
    return templates


def moment(time: datetime | None) -> str:
    """A time to the minute; empty for None.

    >>> moment(datetime(2026, 11, 1, 10))
    '2026-11-01 10:00 UTC'
    """
    return f"{time:%Y-%m-%d %H:%M} UTC" if time else ""


def points(values: Sequence[float], width: int, height: int) -> str:
    """The points of an SVG line through two or more evenly spaced values, in a picture
    of that size.

    >>> points([0.0, 1.0], width=102, height=24)
    '1.0,22.0 101.0,2.0'
    """
    low = min(values)
    step = (width - 2) / (len(values) - 1)
    scale = (height - 4) / (max(values) - low or 1)
    pairs = (
        f"{index * step + 1:.1f},{height - 2 - (value - low) * scale:.1f}"
        for index, value in enumerate(values)
    )
    return " ".join(pairs)


def page(
    template: Path,
    title: str,
    *,
    css: str = "",
    shared: Sequence[Path] = (),
    data: object = None,
    **values: object,
) -> str:
    """A whole document with the look that all pages of the program share.

    template: `NAME.html.j2`, which extends page.html.j2. In it `{{ text | redacted }}`
    is a text without secrets. NAME.css and NAME.js next to it are the page's own look
    and script. css: further lines of style. shared: files of style, script and licence
    that other pages have too. The scripts become one, in this order, without imports.
    data: a JSON value, which the script reads with `pageData()`. values: the variables
    of the template. Raises ValueError where style or script would end their own
    elements.

    Example::

        template = Path(__file__).with_name("align.html.j2")
        text = page(template, "Aligned pairs", pairs=pairs)
    """
    style = _joined(".css", template, shared) + css
    script = _joined(".js", template, shared)
    licences = "".join(
        f"/*\n{file.read_text(encoding='utf-8')}*/\n"
        for file in shared
        if not file.suffix
    )
    script = licences + re.sub(r"(?m)^(export |import .*\n)", "", script)
    if "</" in style + script:
        raise ValueError("css and js must not hold '</'")
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src 'self' file: data: blob:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "style": style,
        "script": script,
        "data": data,
        "generator": _GENERATOR,
        "policy": policy,
    }
    return (
        environment(template.parent)
        .get_template(template.name)
        .render(title=title, **parts, **values)
    )


def _joined(kind: str, template: Path, shared: Sequence[Path]) -> str:
    """The style (.css) or script (.js) of a page: first the parts that all pages have,
    then the shared files, then the page's own file."""
    files = [PAGES / "tokens.css"] if kind == ".css" else []
    files.append(PAGES / f"page{kind}")
    files += [file for file in shared if file.suffix == kind]
    name = template.name.removesuffix(".html.j2")
    files.append(template.with_name(name).with_suffix(kind))
    return "".join(file.read_text(encoding="utf-8") for file in files)


def is_page(path: Path) -> bool:
    """Whether `page` made a file. Only such a file may be replaced without asking. The
    result is False where the file is missing or cannot be read."""
    try:
        with open_regular(path) as file:
            return _GENERATOR.encode() in file.read(2048)
    except OSError:
        return False


def as_json(data: Any) -> str:
    """Contents of files as JSON. Lone surrogates are escaped, and values that are not
    valid JSON become those of `finite`."""
    try:
        return json.dumps(data, allow_nan=False)
    except ValueError:
        return json.dumps(finite(data))


def finite(value: Any) -> Any:
    """Data with None in the place of NaN and infinity, which JSON lacks.

    >>> finite({"loss": float("nan"), "step": 3})
    {'loss': None, 'step': 3}
    """
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def link_to(path: Path, folder: Path) -> str:
    """The address of a file for a page in `folder`. It is relative, so that both can be
    moved together.

    >>> link_to(Path("run/samples/a b.png"), Path("run"))
    'samples/a%20b.png'
    """
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # another drive, on Windows
        return path.absolute().as_uri()
    return quote(Path(relative).as_posix(), safe="/~")


def embedded(image: Image, side: int, quality: int = 80) -> str:
    """An image as a `data:` address: JPEG, its longer side at most `side` pixels.
    Transparent pixels become grey."""
    from PIL import Image as Images

    small = image.copy()
    small.thumbnail((side, side), Images.Resampling.LANCZOS)
    if "A" in small.getbands() or "transparency" in small.info:
        layers = small.convert("RGBA")
        small = Images.new("RGBA", layers.size, (128, 128, 128, 255))
        small.alpha_composite(layers)
    buffer = BytesIO()
    small.convert("RGB").save(buffer, format="JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + b64encode(buffer.getvalue()).decode("ascii")
