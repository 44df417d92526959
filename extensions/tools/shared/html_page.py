"""Pages that people open in a browser: one file that asks no server for anything and
works from a USB stick. Imports no torch.

`page` fills a template (Jinja2), in which every text is escaped, and puts the page's
own style and script into it. A policy in the document (https://www.w3.org/TR/CSP3/)
forbids the browser to load anything but images beside the page, and to run any script
but the page's own, whatever a caption, a prompt or the name of a file holds. What pages
have in common lies in pages/, which `run.py ui` serves too.
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
    """All words that the program's pages say, for a translation in one place."""
    return json.loads((PAGES / "texts.json").read_text(encoding="utf-8"))


@cache
def environment(*folders: Path) -> Environment:
    """What fills the templates of these folders and those of pages/; `t` in them are
    the `texts`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader([*folders, PAGES]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: "" if value is None else value,
    )
    made.globals |= {"t": texts()}
    made.policies["json.dumps_function"] = lambda data, **_: as_json(data)
    made.tests["search_state"] = lambda kind: str(kind).startswith("state")
    made.filters |= {
        "redacted": lambda text: redact_text(str(text)),
        "duration": duration,
        "about": about,
        "points": points,
        "size": readable_size,
        "address": lambda text: quote(str(text), safe="", errors="backslashreplace"),
        "time": moment,
    }
    return made


def moment(time: datetime | None) -> str:
    """A moment to the minute, such as `2026-11-01 10:00 UTC`; empty for None."""
    return f"{time:%Y-%m-%d %H:%M} UTC" if time else ""


def points(values: Sequence[float], width: int, height: int) -> str:
    """The points of a line through evenly spaced values, two or more, in a picture of
    that size."""
    low = min(values)
    step = (width - 2) / (len(values) - 1)
    scale = (height - 4) / (max(values) - low or 1)
    return " ".join(
        f"{index * step + 1:.1f},{height - 2 - (value - low) * scale:.1f}"
        for index, value in enumerate(values)
    )


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

    template: `NAME.html.j2`, which extends page.html.j2; of it `{{ text | redacted }}`
    is without secrets. NAME.css and NAME.js beside it are the page's own look and
    script. css: further lines of style. shared: files of style, script and licence that
    other pages have too. The scripts become one, in this order, without imports. data:
    a JSON value, which the script reads with `pageData()`. values: what the template
    names. Raises ValueError where style or script would end their own elements.
    """
    own = template.with_name(template.name.removesuffix(".html.j2"))
    style, script = (
        "".join(
            file.read_text(encoding="utf-8")
            for file in (
                PAGES / f"page{kind}",
                *(f for f in shared if f.suffix == kind),
                own.with_suffix(kind),
            )
        )
        for kind in (".css", ".js")
    )
    licences = "".join(
        f"/*\n{file.read_text(encoding='utf-8')}*/\n"
        for file in shared
        if not file.suffix
    )
    style = style + css
    script = licences + re.sub(r"(?m)^(export |import .*\n)", "", script)
    if "</" in style + script:
        raise ValueError("css and js must not hold '</'")
    policy = (
        "default-src 'none'; img-src 'self' file: data: blob:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'; "
        "base-uri 'none'; form-action 'none'"
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


def is_page(path: Path) -> bool:
    """Whether a file is a page that `page` made: only such a file may be replaced
    without asking."""
    try:
        with open_regular(path) as file:
            return _GENERATOR.encode() in file.read(2048)
    except OSError:
        return False


def as_json(data: Any) -> str:
    """JSON of what files hold: lone surrogates escaped, and of what is not valid JSON
    as `finite`."""
    try:
        return json.dumps(data, allow_nan=False)
    except ValueError:
        return json.dumps(finite(data))


def finite(value: Any) -> Any:
    """Data with null for NaN and infinity, which JSON lacks."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def link_to(path: Path, folder: Path) -> str:
    """The address of a file for a page in `folder`: relative, so that both can be moved
    together."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # another drive, on Windows
        return path.absolute().as_uri()
    return quote(Path(relative).as_posix(), safe="/~")


def embedded(image: Image, side: int, quality: int = 80) -> str:
    """An image as a `data:` address: JPEG, its longer side at most `side` pixels; what
    is transparent becomes grey."""
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
