"""Which part of an image is trained where it is cut to its bucket: a small file beside
the image, which the page writes, else the middle.

`photo.crop` beside `photo.jpg` has two numbers from 0 to 1, of what is cut off in width
and in height: `0.5 0.5` is the middle, `0 0.5` keeps the left edge, `0.5 1` the lower
one. The image is never changed. `matching` reads the files, and `items` applies them.
"""

from __future__ import annotations

from pathlib import Path

from toolkit.contracts.data import Focus
from toolkit.data.scan.directory import DirectoryListing
from toolkit.files.writing import open_regular

SUFFIX = ".crop"
"""Ending of the files."""

MOST_BYTES = 200
"""Bytes of such a file that are read at most."""


class CropError(ValueError):
    """A file that does not say which part is kept. The text says why, and the remedy.

    >>> str(CropError("is empty"))
    'is empty'
    """


def crop_file(listing: DirectoryListing, stem: str) -> str:
    """The file of an image by the image's stem; empty where it has none."""
    name = listing.files.get(stem + SUFFIX)
    return listing.path(name) if name else ""


def read_crop(path: Path | str) -> Focus:
    """The part that a file asks for. Raises CropError for a file that cannot be read or
    has something else in it."""
    try:
        with open_regular(Path(path)) as file:
            text = file.read(MOST_BYTES).decode()
        across, down = map(float, text.split())
    except OSError as error:
        raise CropError(f"cannot be read: {error.strerror or error}") from error
    except ValueError:
        across = down = -1
    if not (0 <= across <= 1 and 0 <= down <= 1):
        raise CropError(
            "has to be two numbers from 0 to 1, such as '0.5 0' for the upper edge. "
            "Correct it, or remove it for the middle"
        )
    return Focus(across, down)
