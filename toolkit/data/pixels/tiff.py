"""TIFF files: those whose values Pillow 13 reads wrongly are recognised by their tags
and refused, and the pages of the others are counted.

`images` asks both before it decodes a TIFF; `unread` names the files that Pillow does
not open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, cast

from PIL import Image, TiffImagePlugin

from toolkit.data.pixels.unread import Unread

_SUBFILE = 254
_BITS = 258
_COMPRESSION = 259
_PHOTOMETRIC = 262
_PLANAR = 284
_EXTRA = 338
_FORMAT = 339
_SUBSAMPLING = 530

_UNCOMPRESSED = 1
_WEBP = 50001
"""Pillow knows its name, and its libtiff has no decoder for it."""

_WHITE_IS_ZERO, _YCBCR = 0, 6
_PREMULTIPLIED = 1
_FORMATS = {1: "", 2: "signed ", 3: "floating-point "}

_MOST_PAGES = 1000
_NOT_A_PAGE = 1 | 4
"""Bits of tag 254: a smaller version of another page, or its mask."""


def refuse_misread(image: Image.Image) -> None:
    """Raises Unread for an opened TIFF whose values Pillow reads wrongly, or cannot
    read."""
    tags = cast("TiffImagePlugin.TiffImageFile", image).tag_v2
    bits = max(_numbers(tags, _BITS, 1))
    photometric = _numbers(tags, _PHOTOMETRIC, 0)[0]
    compression = _numbers(tags, _COMPRESSION, 1)[0]
    is_planar = _numbers(tags, _PLANAR, 1)[0] == 2
    format_ = _FORMATS.get(_numbers(tags, _FORMAT, 1)[0], "other ")
    if format_ or bits not in (1, 2, 4, 8, 16):
        raise Unread(f"a TIFF of {format_}values of {bits} bits")
    if image.mode == "LAB":
        raise Unread("a TIFF of Lab")
    if is_planar and (bits == 16 or _PREMULTIPLIED in _numbers(tags, _EXTRA, 0)):
        raise Unread("a TIFF whose channels are stored one after the other")
    if bits == 16 and photometric == _WHITE_IS_ZERO:
        raise Unread("a TIFF of 16 bits with white as zero")
    if compression == _WEBP:
        raise Unread("a TIFF with WebP compression")
    if photometric == _YCBCR and compression == _UNCOMPRESSED:
        if _numbers(tags, _SUBSAMPLING, 2) != (1, 1):
            raise Unread("a TIFF of YCbCr with fewer colours than pixels")


def pages_of(image: Image.Image) -> int:
    """The pages of an opened TIFF. Behind the first one, smaller versions of a page
    (thumbnails, pyramids) and masks do not count; if the first one is such a version,
    all count."""
    file: IO[bytes] = cast("Any", image).fp
    place = file.tell()
    kinds = [_numbers(tags, _SUBFILE, 0)[0] for tags in _directories(file)]
    file.seek(place)
    if kinds[0] & _NOT_A_PAGE:
        return len(kinds)
    return sum(not kind & _NOT_A_PAGE for kind in kinds)


def _directories(file: IO[bytes]) -> Iterator[TiffImagePlugin.ImageFileDirectory_v2]:
    """The directories of tags of a file; the object is the same for all."""
    file.seek(0)
    head = file.read(8)
    if 43 in head[2:4]:  # BigTIFF
        head += file.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(head)
    seen = set[int]()
    while tags.next and tags.next not in seen and len(seen) < _MOST_PAGES:
        seen.add(tags.next)
        file.seek(tags.next)
        tags.load(file)
        yield tags


def _numbers(tags: Mapping[int, Any], tag: int, default: int) -> tuple[int, ...]:
    value = tags.get(tag, default)
    values = value if isinstance(value, Sequence) else (value,)
    return tuple(map(int, values)) or (default,)
