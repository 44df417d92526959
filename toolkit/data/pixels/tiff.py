"""TIFF files that Pillow 13 reads wrongly or not at all: recognised by the header, read
here with numpy or refused with the reason.

`header_of` describes the pixels of a file. By the header, `images` lets `undone` and
`read_planes` correct the pixels that Pillow reads wrongly, and refuses files that
neither can read. `colours` reads the colours of a TIFF.

Shape suffixes: H/W height and width in pixels, P planes (channels).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import IO, Any, NamedTuple, cast

from PIL import Image, TiffImagePlugin

_SUBFILE = 254
_WIDTH = 256
_LENGTH = 257
_BITS = 258
_COMPRESSION = 259
_PHOTOMETRIC = 262
_STRIP_OFFSETS = 273
_ORIENTATION = 274
_SAMPLES = 277
_ROWS_PER_STRIP = 278
_PLANAR = 284
_TILE_WIDTH = 322
_TILE_LENGTH = 323
_TILE_OFFSETS = 324
_EXTRA = 338
_FORMAT = 339
_SUBSAMPLING = 530
_YCBCR = 6
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_COMPRESSIONS = {
    1: "",
    2: "CCITT",
    3: "CCITT",
    4: "CCITT",
    5: "LZW",
    6: "JPEG",
    7: "JPEG",
    8: "ZIP",
    32773: "PackBits",
    32946: "ZIP",
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "DNG's JPEG",
    34925: "LZMA",
    34933: "PNG",
    34934: "JPEG XR",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
"""Tag 259 -> its name. Source: the tables of TIFF 6.0 and of libtiff 4.7 (tiff.h)."""

_NOT_DECODED = frozenset(
    {33003, 33004, 33005, 34712, 34887, 34892, 34933, 34934, 50001, 50002, 52546}
)
"""Those of them for which Pillow's libtiff has no decoder."""

_FORMATS = {
    1: "uint",
    2: "int",
    3: "float",
    4: "undefined",
    5: "complex int",
    6: "complex",
}

# Greys of more than 8 bits that Pillow leaves out, though it reads their brothers:
# `undone` turns them.
_GREYS = {
    (b"MM", 0, 16): ("I;16B", "I;16B"),
    (b"II", 0, 12): ("I;16", "I;12"),
    (b"MM", 0, 12): ("I;16", "I;12"),
    (b"MM", 1, 12): ("I;16", "I;12"),
}
for (_prefix, _photometric, _depth), _modes in _GREYS.items():
    TiffImagePlugin.OPEN_INFO.setdefault(
        (_prefix, _photometric, (1,), 1, (_depth,), ()), _modes
    )


class TiffHeader(NamedTuple):
    """The tags of the first page of a TIFF that describe its pixels.

    >>> print(TiffHeader.of({258: (16, 16, 16), 262: 2, 277: 3}))
    3 x uint16
    """

    bits: tuple[int, ...]
    """The bits of each sample of a pixel."""

    format: int
    """1 unsigned, 2 signed, 3 floating point."""

    compression: int
    photometric: int
    """0: white is zero, 1: black is zero, 2: RGB, 5: CMYK."""

    is_planar: bool
    """Whether each channel is stored by itself."""

    extras: tuple[int, ...]
    """The meaning of the channels behind the colours: 0 unknown, 1 opacity that
    multiplied the colours, 2 opacity."""

    is_subsampled: bool
    """Whether it is YCbCr with fewer colours than pixels, uncompressed."""

    @classmethod
    def of(cls, tags: Mapping[int, Any]) -> TiffHeader:
        """The header by its tags."""
        bits = _numbers(tags, _BITS, 1)
        count = _numbers(tags, _SAMPLES, len(bits))[0]
        if len(bits) == 1:
            bits = bits * min(count, 100)
        compression = _numbers(tags, _COMPRESSION, 1)[0]
        photometric = _numbers(tags, _PHOTOMETRIC, 0)[0]
        is_planar = _numbers(tags, _PLANAR, 1)[0] == 2
        extras = _numbers(tags, _EXTRA, 0) if _EXTRA in tags else ()
        is_subsampled = (
            photometric == _YCBCR
            and compression == 1
            and _numbers(tags, _SUBSAMPLING, 2) != (1, 1)
        )
        kind = _numbers(tags, _FORMAT, 1)[0]
        return cls(
            bits, kind, compression, photometric, is_planar, extras, is_subsampled
        )

    def __str__(self) -> str:
        """Samples, type and compression: `3 x float32, WebP compression`."""
        name = _FORMATS.get(self.format, f"format {self.format} of ")
        one_size = len(set(self.bits)) == 1
        if one_size:
            what = f"{len(self.bits)} x {name}{self.bits[0]}"
        else:
            what = f"{name} of {_listed(self.bits)} bits"
        compression = _COMPRESSIONS.get(
            self.compression, f"unknown ({self.compression})"
        )
        if compression:
            what += f", {compression} compression"
        if self.is_subsampled:
            what += ", YCbCr with fewer colours than pixels"
        return what

    @property
    def is_premultiplied(self) -> bool:
        """Whether its colours were multiplied by its opacity."""
        return 1 in self.extras

    @property
    def is_read(self) -> bool:
        """Whether an image that Pillow opens has values of a known range in a known
        compression."""
        is_signed = self.format == 2 and max(self.bits) < 32
        is_decoded = (
            self.compression in TiffImagePlugin.COMPRESSION_INFO
            and self.compression not in _NOT_DECODED
        )
        return is_decoded and not is_signed and not self.is_subsampled

    @property
    def has_planes(self) -> bool:
        """Whether Pillow reads its planes wrongly: each byte of 16 bits as a pixel, and
        8 bits that are multiplied by the opacity not at all."""
        is_plain = self.is_planar and self.compression == 1 and len(self.bits) > 1
        return is_plain and (
            set(self.bits) == {16} or (set(self.bits) == {8} and self.is_premultiplied)
        )

    @property
    def grey_top(self) -> int:
        """The value of white (of black, where white is zero) that Pillow gives for grey
        of more than 8 bits; 0 where Pillow gives values of 16 bits with black as
        zero."""
        is_grey = (
            len(self.bits) == 1 and self.photometric in (0, 1) and self.format == 1
        )
        if (
            not is_grey
            or self.bits[0] not in (12, 16)
            or (self.bits[0], self.photometric) == (16, 1)
        ):
            return 0
        return (1 << self.bits[0]) - 1

    @property
    def reading(self) -> str:
        """Part of the identity of the pixels. Empty: they are those that the first
        version of the program read."""
        if self.has_planes:
            return "tiff 1 planes"
        if self.grey_top:
            return f"tiff 1 grey {self.bits[0]} {self.photometric}"
        return ""


def header_of(image: Image.Image) -> TiffHeader | None:
    """The header of an opened image that was not decoded; None where it is not a
    TIFF."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return TiffHeader.of(image.tag_v2)
    return None


def read_header(file: IO[bytes]) -> TiffHeader | None:
    """The header of a file that Pillow does not open; None where it is not a TIFF, or
    not whole."""
    try:
        file.seek(0)
        if file.read(4) not in _MAGIC:
            return None
        tags = next(_directories(file), None)
        if tags is not None and _WIDTH in tags:
            return TiffHeader.of(tags)
        return None
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        LookupError,
        RuntimeError,
        EOFError,
        struct.error,
    ):
        return None


def is_opened(header: TiffHeader, prefix: bytes) -> bool:
    """Whether Pillow has a mode for such pixels, so that a file it does not open is
    damaged."""
    keys = TiffImagePlugin.OPEN_INFO
    wanted = (prefix, header.photometric, header.bits, header.extras)
    for key in keys:
        if (*key[:2], *key[4:]) == wanted and header.format in key[2]:
            return header.is_read
    return False


_MOST_PAGES = 1000
_NOT_A_PAGE = 1 | 4
"""Bits of tag 254: a smaller version of another page, or its mask."""


def pages_of(image: TiffImagePlugin.TiffImageFile) -> int:
    """The pages of an opened TIFF. Behind the first one, smaller versions of a page
    (thumbnails, pyramids) and masks are none; where the first one is such a version,
    all count."""
    file: IO[bytes] = cast("Any", image).fp
    place = file.tell()
    kinds = [_numbers(tags, _SUBFILE, 0)[0] for tags in _directories(file)]
    file.seek(place)
    is_first_whole = not kinds[0] & _NOT_A_PAGE
    if is_first_whole:
        return sum(not kind & _NOT_A_PAGE for kind in kinds)
    return len(kinds)


def _directories(file: IO[bytes]) -> Iterator[TiffImagePlugin.ImageFileDirectory_v2]:
    """The directories of tags of a file; the object is the same for all."""
    file.seek(0)
    head = file.read(8)
    if head[2] == 43 or head[3] == 43:
        head += file.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(head)
    seen = set[int]()
    while tags.next and tags.next not in seen and len(seen) < _MOST_PAGES:
        seen.add(tags.next)
        file.seek(tags.next)
        tags.load(file)
        yield tags


def undone(image: Image.Image, header: TiffHeader) -> Image.Image:
    """A decoded grey image of 12 or 16 bits at the full range of 16 bits: 0 is black
    and 65535 is white. A TIFF in which 0 is white is inverted."""
    import numpy

    values_HW = numpy.asarray(image).astype(numpy.uint32)
    top = header.grey_top
    values_HW = (values_HW.clip(0, top) * 65535 + top // 2) // top
    if header.photometric == 0:
        values_HW = 65535 - values_HW
    result = Image.fromarray(values_HW.astype(numpy.uint16))
    result.info = image.info
    return result


def read_planes(image: TiffImagePlugin.TiffImageFile) -> Any:
    """The pixels [H, W, P], uint8 or uint16, of an opened, not decoded TIFF with
    `has_planes`; not turned upright, and not multiplied by the opacity. Channels behind
    those of the image's mode are left out.

    Raises OSError where the file is too short.
    """
    import numpy

    tags = image.tag_v2
    file = image.fp
    assert file is not None  # it is open
    width = _numbers(tags, _WIDTH, 0)[0]
    height = _numbers(tags, _LENGTH, 0)[0]
    planes = len(image.getbands())
    if _TILE_OFFSETS in tags:
        offsets = _numbers(tags, _TILE_OFFSETS, 0)
        part_width = _numbers(tags, _TILE_WIDTH, 0)[0]
        part_height = _numbers(tags, _TILE_LENGTH, 0)[0]
    else:
        offsets = _numbers(tags, _STRIP_OFFSETS, 0)
        part_width = width
        part_height = min(_numbers(tags, _ROWS_PER_STRIP, height)[0], height)
    if (
        part_width < 1
        or part_height < 1
        or part_width * part_height > 4 * max(width * height, 1 << 20)
    ):
        raise OSError("its strips have no size")
    across = ceil(width / part_width)
    down = ceil(height / part_height)
    if len(offsets) < across * down * planes:
        raise OSError("some of its strips are missing")
    order = "<" if tags.prefix == b"II" else ">"
    size = TiffHeader.of(tags).bits[0] // 8
    kind = numpy.dtype(f"{order}u{size}")
    values_PHW = numpy.zeros((planes, height, width), kind.newbyteorder("="))
    places = []
    for p in range(planes):
        for y in range(down):
            for x in range(across):
                places.append((p, y, x))
    for (plane, y, x), offset in zip(places, offsets, strict=False):
        top = y * part_height
        left = x * part_width
        # Tiles are stored whole, the last strip is as high as it needs to be.
        rows = part_height if _TILE_OFFSETS in tags else min(part_height, height - top)
        file.seek(offset)
        data = file.read(rows * part_width * size)
        if len(data) < rows * part_width * size:
            raise OSError("image file is truncated")
        part_HW = numpy.frombuffer(data, kind).reshape(rows, part_width)
        inside_HW = part_HW[: height - top, : width - left]
        values_PHW[plane, top : top + rows, left : left + part_width] = inside_HW
    values_HWP = values_PHW.transpose(1, 2, 0)
    if image.mode == "RGBA" and TiffHeader.of(tags).is_premultiplied:
        top = numpy.iinfo(kind).max
        alpha_HW1 = values_HWP[..., 3:].astype(numpy.uint64)
        plain_HWP = (
            values_HWP[..., :3].astype(numpy.uint64)
            * top
            // numpy.maximum(alpha_HW1, 1)
        ).clip(0, top)
        values_HWP = numpy.concatenate(
            [numpy.where(alpha_HW1 == 0, 0, plain_HWP), alpha_HW1], axis=2
        )
    return values_HWP.astype(numpy.uint8 if size == 1 else numpy.uint16)


def orientation_of(image: TiffImagePlugin.TiffImageFile) -> int:
    """EXIF orientation of an opened TIFF, 1 to 8. Pillow turns the image when it
    decodes it."""
    return _numbers(image.tag_v2, _ORIENTATION, 1)[0]


def _numbers(tags: Mapping[int, Any], tag: int, default: int) -> tuple[int, ...]:
    tag_value = tags.get(tag, default)
    if isinstance(tag_value, Sequence) and not isinstance(tag_value, str | bytes):
        values = tuple(tag_value)
    else:
        values = (tag_value,)
    return tuple(int(value) for value in values) or (default,)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
