"""`suspects.txt`: the images that `influence` suspects, a line each, for people, `lint`
and the web page. Imports no torch.

/data/images/07.png  # influence -0.31, gradient 1.9 times the median: 4.2 deviations from the others
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from toolkit.config.sections.dataset import CAPTION_SUFFIXES
from toolkit.files.writing import open_regular

FOLDER = "influence"
"""Name of the folder in that of a run."""

FILE = "suspects.txt"
_REASON = "  # "

MOST_BYTES = 2**22
"""Maximum size of the file: about 20,000 images."""


def suspects_text(reasons: Mapping[str, str], head: str) -> str:
    """The file. reasons: image -> why it is suspected. head: comment lines, without
    their `#`."""
    lines = [f"# {line}" for line in head.splitlines()]
    return (
        "\n".join(
            [
                *lines,
                *(
                    f"{os.path.realpath(image)}{_REASON}{why}"
                    for image, why in reasons.items()
                ),
            ]
        )
        + "\n"
    )


def read_suspects(file: Path) -> dict[str, str]:
    """Image, as a path without links -> why it is suspected; without those that are
    gone, or were changed, or whose caption was, after the file was written. A relative
    path counts from the file's folder. Raises OSError for a file that cannot be read or
    has more than `MOST_BYTES`."""
    with open_regular(file) as opened:
        content = opened.read(MOST_BYTES + 1)
        written = os.fstat(opened.fileno()).st_mtime
    if len(content) > MOST_BYTES:
        raise OSError(
            errno.EFBIG,
            f"it has more than {MOST_BYTES} bytes, so it is not a list of suspects",
            str(file),
        )
    found = {}
    for line in (
        content.decode("utf-8", errors="replace").replace("\0", "\ufffd").split("\n")
    ):
        image, _, why = line.partition(_REASON)
        path = os.path.realpath(file.parent / image.strip())
        if (
            not image.startswith("#")
            and os.path.isfile(path)
            and not _is_newer(path, written)
        ):
            found[path] = why.strip()
    return found


def _is_newer(image: str, written: float) -> bool:
    """Whether the image, or a file beside it of its name, such as a caption, was
    written after that time."""
    stem = os.path.splitext(image)[0]
    beside = (image, *(stem + suffix for suffix in (*CAPTION_SUFFIXES, ".json")))
    return any(
        os.path.getmtime(path) > written for path in beside if os.path.isfile(path)
    )


def suspects_of_run(folder: Path) -> dict[str, str]:
    """What `influence` found in the folder of a run; empty where it was not run."""
    try:
        return read_suspects(folder / FOLDER / FILE)
    except OSError:
        return {}
