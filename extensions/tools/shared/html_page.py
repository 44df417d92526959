"""Pages that people open in a browser: one file that asks no server for anything and works from a USB stick. Imports no
torch.

`page` fills a template (Jinja2), in which every text is escaped, and puts the page's own style and script into it. A
policy in the document (https://www.w3.org/TR/CSP3/) forbids the browser to load anything but images beside the page,
and to run any script but the page's own, whatever a caption, a prompt or the name of a file holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from toolkit.files.redact import redact_text
from toolkit.files.writing import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

_HERE = Path(__file__).parent
_GENERATOR = '<meta name="generator" content="Atelier">'


def page(
    template: Path, title: str, *, css: str = "", shared: Sequence[Path] = (), data: object = None, **values: object
) -> str:
    """A whole document with the look that all pages of the program share.

    template: `NAME.html.j2`, which extends page.html.j2; of it `{{ text | redacted }}` is without secrets. NAME.css and
    NAME.js beside it are the page's own look and script. css: further lines of style. shared: files of style, script
    and licence that other pages have too, modules without imports among them. data: a JSON value, which the script
    reads with `pageData()`. values: what the template names.
    Raises ValueError where style or script would end their own elements.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    own = template.with_name(template.name.removesuffix(".html.j2"))
    style, script = (
        "".join(
            file.read_text(encoding="utf-8")
            for file in (_HERE / f"page{kind}", *(f for f in shared if f.suffix == kind), own.with_suffix(kind))
        )
        for kind in (".css", ".js")
    )
    licences = "".join(f"/*\n{file.read_text(encoding='utf-8')}*/\n" for file in shared if not file.suffix)
    style, script = style + css, licences + re.sub(r"(?m)^export ", "", script)
    if "</" in style + script:
        raise ValueError("css and js must not hold '</'")
    policy = (
        "default-src 'none'; img-src 'self' file: data: blob:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=FileSystemLoader([template.parent, _HERE]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: "" if value is None else value,
    )
    environment.filters["redacted"] = redact_text
    parts = {"style": style, "script": script, "data": _json(data), "generator": _GENERATOR, "policy": policy}
    return environment.get_template(template.name).render(title=title, **parts, **values)


def is_page(path: Path) -> bool:
    """Whether a file is a page that `page` made: only such a file may be replaced without asking."""
    try:
        with open_regular(path) as file:
            return _GENERATOR.encode() in file.read(2048)
    except OSError:
        return False


def _json(value: object) -> str:
    """JSON that cannot end the element it stands in; NaN and infinity, which JSON lacks, are null."""
    text = json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def finite(value: Any) -> Any:
    """Data with null for NaN and infinity, which JSON lacks."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def link_to(path: Path, folder: Path) -> str:
    """The address of a file for a page in `folder`: relative, so that both can be moved together."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # another drive, on Windows
        return path.absolute().as_uri()
    return quote(Path(relative).as_posix(), safe="/~")


def embedded(image: Image, side: int, quality: int = 80) -> str:
    """An image as a `data:` address: JPEG, its longer side at most `side` pixels; what is transparent becomes grey."""
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
