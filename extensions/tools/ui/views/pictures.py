"""The answer that shows an image, for all pages.

An image is sent as its file is, or as a smaller copy that `extensions.tools.ui.decoder`
makes. Which files may be shown is decided by the view that calls `picture`.
"""

from __future__ import annotations

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from extensions.tools.ui.decoder import SIDES, tag_of, thumbnail
from extensions.tools.ui.state import refusals, ui_of, whole
from toolkit.data.pixels.images import ImageError, media_type
from toolkit.files.redact import redact_text

NOT_SHOWN = frozenset({"image/heif", "image/tiff"})
"""Types that most browsers do not show. The largest copy is sent instead."""

LARGE = SIDES[-1]


def picture(request: Request, path: Path, side: int = 0) -> Response:
    """An image file, or a WebP copy of it.

    side: longer side of the copy in pixels, where the request does not ask for another
    `side`. 0: the file itself. Files of other people are only sent as copies, so that
    they are images whatever they contain.

    A browser asks again each time, and gets 304 while the file is the same. Raises
    HTTPException 404 for a file that is gone, 415 for one that is not an image or cannot
    be decoded, and as `refusals` if the copy cannot be written.
    """
    side = whole(request.query_params.get("side", ""), 1) or side
    try:
        tag = f'"{tag_of(path, side)}"'
        headers = {"etag": tag, "cache-control": "private, no-cache"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        kind = "image/webp" if side else media_type(path)
        if kind in NOT_SHOWN:
            kind = "image/webp"
            side = LARGE
        with refusals(path.name):
            file = thumbnail(ui_of(request), path, side) if side else path
    except ImageError as error:
        raise HTTPException(415, redact_text(error.reason)) from error
    except OSError as error:
        raise HTTPException(404, f"{path.name}: {error.strerror}") from error
    return FileResponse(file, media_type=kind, headers=headers)
