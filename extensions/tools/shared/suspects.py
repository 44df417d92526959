"""`suspects.txt`: the images that `influence` suspects, with one line each.

A line is `/data/images/07.png  # influence -0.31, gradient 1.9 times the median`. A
user may edit the file. This module writes and reads the text; the measurement is in
`influence`. Imports no torch.

`influence` writes the file; `lint` and the page (`ui/datasets`) read it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from toolkit.data.scan.captions import files_beside
from toolkit.files.writing import open_regular

FOLDER = "influence"
"""Name of the folder in the folder of a run."""

FILE = "suspects.txt"
_REASON = "  # "

MOST_BYTES = 2**22
"""Maximum size of the file: about 20,000 images."""


def suspects_text(reasons: Mapping[str, str], head: str) -> str:
    """The text of the file. reasons: image -> why it is suspected. head: comment lines,
    without their `#`.

    >>> suspects_text({"/data/07.png": "influence -0.31"}, head="Two images")
    '# Two images\\n/data/07.png  # influence -0.31\\n'
    """
    lines = [f"# {line}" for line in head.splitlines()]
    for image, why in reasons.items():
        lines.append(f"{os.path.realpath(image)}{_REASON}{why}")
    return "\n".join(lines) + "\n"


def read_suspects(file: Path) -> dict[str, str]:
    """Image, as a path without links -> why it is suspected. Images are left out that
    are gone, or that were changed, or whose caption was, after the file was written. A
    relative path counts from the file's folder. Raises OSError for a file that cannot
    be read or has more than `MOST_BYTES`."""
    with open_regular(file) as opened:
        content = opened.read(MOST_BYTES + 1)
        written = os.fstat(opened.fileno()).st_mtime
    if len(content) > MOST_BYTES:
        raise OSError(
            errno.EFBIG,
            f"it has more than {MOST_BYTES} bytes, so it is not a list of suspects",
            str(file),
        )
    reasons = {}
    text = content.decode("utf-8", errors="replace").replace("\0", "\ufffd")
    for line in text.split("\n"):
        image, _, why = line.partition(_REASON)
        path = os.path.realpath(file.parent / image.strip())
        if (
            not image.startswith("#")
            and os.path.isfile(path)
            and not _is_newer(path, written)
        ):
            reasons[path] = why.strip()
    return reasons


def _is_newer(image: str, written: float) -> bool:
    """Whether the image or its caption was written after that time."""
    files = filter(os.path.isfile, (image, *map(str, files_beside(Path(image)))))
    return any(os.path.getmtime(path) > written for path in files)


def suspects_of_run(folder: Path) -> dict[str, str]:
    """The suspects in the folder of a run, as `read_suspects` returns them. The result
    is empty where `influence` was not run, and where the file cannot be read."""
    try:
        return read_suspects(folder / FOLDER / FILE)
    except OSError:
        return {}
