"""Pages that people open in a browser: one file that asks no server for anything and works from a USB stick. Imports no
torch.

`element` makes markup of which every text is escaped, `page` a whole document around it. A policy in the document
(https://www.w3.org/TR/CSP3/) forbids the browser to load anything but pictures beside the page, and to run any script
but the page's own, whatever a caption, a prompt or the name of a file holds.
"""

from __future__ import annotations

import hashlib
import json
import os
from base64 import b64encode
from collections.abc import Iterable
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from toolkit.files.writing import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

DATA = "data"
"""`id` of the element that holds the data of the page's script."""


class Markup(str):
    """HTML that is safe as it is."""


Content = str | int | float | None | Iterable["Content"]
"""Text, which is escaped; `Markup`, which is not; several of them. None is nothing."""

_GENERATOR = '<meta name="generator" content="Atelier">'

_WITHOUT_END = frozenset({"br", "hr", "img", "input", "meta", "link", "col"})


def markup(content: Content) -> Markup:
    """Content as HTML."""
    if content is None:
        return Markup()
    if isinstance(content, Markup):
        return content
    if isinstance(content, str | int | float):
        return Markup(escape(str(content)))
    return Markup("".join(map(markup, content)))


def element(tag: str, /, *content: Content, **attributes: str | float | bool | None) -> Markup:
    """One element: `element("a", "text", href="x.png", class_="big", data_step=3)`.

    Of the attributes `_` is written `-`, and one at the end is left out; True is an attribute without a value, None and
    False none at all.
    """
    begin = tag
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            begin += f" {key}"
        elif value is not None and value is not False:
            begin += f' {key}="{escape(str(value))}"'
    return Markup(f"<{begin}>" if tag in _WITHOUT_END else f"<{begin}>{markup(content)}</{tag}>")


def table(head: Iterable[Content], rows: Iterable[Iterable[Content]], **attributes: str) -> Markup:
    """A table that scrolls by itself where the window is narrow."""
    titles = element("thead", element("tr", (element("th", title) for title in head)))
    lines = (element("tr", (element("td", cell) for cell in row)) for row in rows)
    return element("div", element("table", titles, element("tbody", lines), **attributes), class_="wide")


def page(title: str, *body: Content, css: str = "", js: str = "", data: object = None) -> str:
    """A whole document with the look that all pages of the program share.

    css, js: the page's own, behind the shared ones; neither may hold `</`. data: a JSON value for the script, which
    reads it with `pageData()`. Raises ValueError where css or js would end its own element.
    """
    style = CSS + css
    script = JS + js
    if "</" in style + script:
        raise ValueError("css and js must not hold '</'")
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src 'self' file: data: blob:",
            "style-src 'unsafe-inline'",
            f"script-src 'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        Markup(_GENERATOR),
        element("link", rel="icon", href="data:,"),  # or a browser asks for /favicon.ico
        element("title", title),
        element("style", Markup(style)),
    )
    values = element("script", Markup(_json(data)), type="application/json", id=DATA)
    inside = element("body", element("main", element("h1", title), body), values, element("script", Markup(script)))
    return f"<!DOCTYPE html>\n{element('html', head, inside, lang='en')}\n"


def is_page(path: Path) -> bool:
    """Whether a file is a page that `page` made: only such a file may be replaced without asking."""
    try:
        with open_regular(path) as file:
            return _GENERATOR.encode() in file.read(2048)
    except OSError:
        return False


def _json(value: object) -> str:
    """JSON that cannot end the element it stands in; NaN and infinity, which JSON lacks, are null."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def link_to(path: Path, folder: Path) -> str:
    """The address of a file for a page in `folder`: relative, so that both can be moved together."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # another drive, on Windows
        return path.absolute().as_uri()
    return quote(Path(relative).as_posix(), safe="/~")


def embedded(image: Image, side: int, quality: int = 80) -> str:
    """A picture as a `data:` address: JPEG, its longer side at most `side` pixels; what is transparent becomes grey."""
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


CSS = """
:root { color-scheme: light dark; --back: #fbfbfa; --card: #fff; --text: #1d1d1f; --faint: #6a6a70; --line: #dcdce0;
  --accent: #0a62c4; --good: #1a7f37; --bad: #b42318; --series-0: #2563b8; --series-1: #c2410c; --series-2: #15803d;
  --series-3: #8b3fc0; --series-4: #a1750a; --series-5: #0e7490; }
@media (prefers-color-scheme: dark) { :root { --back: #17181a; --card: #202225; --text: #e8e8ea; --faint: #9d9da5;
  --line: #383a3f; --accent: #6cb0ff; --good: #57c26f; --bad: #ff8a7a; --series-0: #6cb0ff; --series-1: #ff9a5c;
  --series-2: #62cf85; --series-3: #cf9cf5; --series-4: #e0bb55; --series-5: #5fd0e6; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 16px 20px 60px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 8px 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 32px 0 10px; }
h3 { font-size: 1rem; margin: 16px 0 6px; }
h2, h3 { overflow-wrap: anywhere; }
a { color: var(--accent); }
p { margin: 6px 0; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; display: block; }
button, select, input { font: inherit; color: inherit; }
button { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 4px 10px;
  cursor: pointer; }
button:hover { border-color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
code, pre { font: 0.9em/1.45 ui-monospace, monospace; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; overflow-x: auto;
  margin: 8px 0; }
.faint { color: var(--faint); }
.good { color: var(--good); }
.bad { color: var(--bad); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.93em; }
th, td { text-align: left; vertical-align: top; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
th { color: var(--faint); font-weight: 500; }
details > summary { cursor: pointer; }
@media (max-width: 600px) { main { padding: 10px 12px 40px; } h1 { font-size: 1.3rem; } }
"""
"""The look of every page; --series-0 to --series-5 are the colours of curves and marks."""

JS = f"""
'use strict';
function pageData() {{ return JSON.parse(document.getElementById('{DATA}').textContent); }}
"""
