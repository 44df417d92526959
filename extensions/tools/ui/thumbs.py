"""Small images of large ones, made once: JPEG files in `<output>/.ui/thumbs`, named by what they were made of."""

from __future__ import annotations

import hashlib
from pathlib import Path

from toolkit.files.writing import atomic_write

SIDES = (160, 480, 960)
"""Longer sides that are offered, in pixels."""


def thumbnail(cache: Path, image: Path, side: int) -> Path:
    """The JPEG of an image whose longer side is at most `side` pixels, the least of SIDES that is not smaller.

    Raises ImageError for what is no image, OSError for what cannot be read or written.
    """
    from toolkit.data.images import open_image

    side = next((each for each in SIDES if each >= side), SIDES[-1])
    found = image.stat()
    origin = f"{image.absolute()}\0{found.st_size}\0{found.st_mtime_ns}\0{side}"
    name = hashlib.sha256(origin.encode("utf-8", "surrogateescape")).hexdigest()
    path = cache / name[:2] / f"{name}.jpg"
    if not path.is_file():
        small = open_image(image, "gray", at_least=side)
        small.thumbnail((side, side))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, durable=False) as part:
            small.convert("RGB").save(part, format="JPEG", quality=85)
    return path
