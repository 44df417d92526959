"""JPEG XL, read with imagecodecs (libjxl) where it is installed. Pillow 13 has no
decoder, and its plugin is GPL.

A JPEG that was packed losslessly is unpacked to that JPEG, with its profile and EXIF.
Of other files the header says size and colours: libjxl turns their pixels upright, and
gives them in the colours that the header names. imagecodecs does not give the ICC
profile that may be in such a file instead: then it is refused by name.

`images` opens files with `open_jxl`; `colours` reads the colours of a `JxlHeader`.

Source of the layout: ISO/IEC 18181-1 (codestream, annexes D and E) and 18181-2 (file
format).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

from PIL import Image, ImageFile

from toolkit.data.pixels.boxes import boxes_of

BEGINNINGS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
"""First bytes of a codestream, and of a file with boxes."""

PACKAGE = "imagecodecs"

_ALPHA = 0
_SPOT = 2
_CFA = 5
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_PRIMARIES = {1: 1, 9: 9, 11: 12}
"""Primaries of JPEG XL -> those of H.273, with a white of D65."""

_OWN = 2
_WHITES = {1: (0.3127, 0.3290), 10: (1 / 3, 1 / 3), 11: (0.314, 0.351)}
_POINTS = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
"""Whites and primaries of JPEG XL by their codes; code 2 gives the numbers."""


class Unread(ValueError):
    """A valid file of a kind that is not read; the message names the kind."""


class _Bits:
    """Reads the bit fields of a header, the lowest bits of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise ValueError("its header is not whole")
        taken = self._value & ((1 << count) - 1)
        self._value >>= count
        self._left -= count
        return taken

    def flag(self) -> bool:
        return bool(self.take(1))

    def choice(self, *options: tuple[int, int]) -> int:
        """U32: one of four numbers, each a constant and so many bits more."""
        least, bits = options[self.take(2)]
        return least + self.take(bits)

    def enum(self) -> int:
        return self.choice((0, 0), (1, 0), (2, 4), (18, 6))


class JxlHeader(NamedTuple):
    """The header of a codestream: size, bits and colours.

    Example::

        header = open_jxl(file).header
        header.width, header.bits
    """

    width: int
    """Pixels, upright."""

    height: int
    bits: int
    is_float: bool
    is_grey: bool
    has_alpha: bool
    is_animated: bool
    codes: tuple[int, int, bool] | None
    """Primaries and transfer by H.273, and that the range is full; None: an ICC
    profile."""

    gamma: float = 0.0
    """Exponent from light to values where the header gives one instead of a code; else
    0."""

    points: tuple[float, ...] = ()
    """CIE x and y of white, red, green and blue, where the header gives them instead of
    a code."""


def read_header(codestream: bytes) -> JxlHeader:
    """The header of a codestream. Raises ValueError where it is damaged, and Unread for
    kinds that are not supported."""
    if codestream[:2] != BEGINNINGS[0]:
        raise ValueError("it has no codestream")
    bits = _Bits(codestream[2:1024])
    height, width = _size(bits)
    if bits.flag():  # all as usual: 8 bits, XYB, sRGB
        return JxlHeader(width, height, 8, False, False, False, False, (1, 13, False))
    orientation = 1
    is_animated = False
    if bits.flag():
        orientation = 1 + bits.take(3)
        if bits.flag():
            _size(bits)
        if bits.flag():
            _preview(bits)
        is_animated = bits.flag()
        if is_animated:
            _animation(bits)
    is_float, depth = _depth(bits)
    bits.flag()  # whether 16 bits suffice in between
    kinds = [
        _extra_channel(bits)
        for _ in range(bits.choice((0, 0), (1, 0), (2, 4), (1, 12)))
    ]
    bits.flag()  # whether it is XYB, of which libjxl makes the colours that follow
    is_grey, codes, gamma, points = _colours(bits)
    if orientation > 4:
        width, height = height, width
    return JxlHeader(
        width,
        height,
        depth,
        is_float,
        is_grey,
        _ALPHA in kinds,
        is_animated,
        codes,
        gamma,
        points,
    )


def _size(bits: _Bits) -> tuple[int, int]:
    is_small = bits.flag()

    def side() -> int:
        if is_small:
            return 8 * (1 + bits.take(5))
        return bits.choice((1, 9), (1, 13), (1, 18), (1, 30))

    height = side()
    ratio = bits.take(3)
    if ratio == 0:
        return height, side()
    across, down = _RATIOS[ratio - 1]
    return height, height * across // down


def _preview(bits: _Bits) -> None:
    is_small = bits.flag()
    if is_small:
        options = ((16, 0), (32, 0), (1, 5), (33, 9))
    else:
        options = ((1, 6), (65, 8), (321, 10), (1345, 12))
    bits.choice(*options)
    if bits.take(3) == 0:
        bits.choice(*options)


def _animation(bits: _Bits) -> None:
    bits.choice((100, 0), (1000, 0), (1, 10), (1, 30))
    bits.choice((1, 0), (1001, 0), (1, 8), (1, 10))
    bits.choice((0, 0), (0, 3), (0, 16), (0, 32))
    bits.flag()


def _depth(bits: _Bits) -> tuple[bool, int]:
    """Whether the values are floating point, and their bits."""
    if not bits.flag():
        return False, bits.choice((8, 0), (10, 0), (12, 0), (1, 6))
    depth = bits.choice((32, 0), (16, 0), (24, 0), (1, 6))
    bits.take(4)
    return True, depth


def _extra_channel(bits: _Bits) -> int:
    """The type of a channel in addition to the colours."""
    if bits.flag():
        return _ALPHA
    kind = bits.enum()
    _depth(bits)
    bits.choice((0, 0), (3, 0), (4, 0), (1, 3))
    for _ in range(bits.choice((0, 0), (0, 4), (16, 5), (48, 10))):
        bits.take(8)
    if kind == _ALPHA:
        bits.flag()
    elif kind == _SPOT:
        bits.take(64)
    elif kind == _CFA:
        bits.choice((1, 0), (0, 2), (3, 4), (19, 8))
    return kind


def _colours(
    bits: _Bits,
) -> tuple[bool, tuple[int, int, bool] | None, float, tuple[float, ...]]:
    """Whether the colours are grey; their codes; a gamma; the chromaticities of white
    and the primaries."""
    if bits.flag():
        return False, (1, 13, False), 0.0, ()
    has_profile = bits.flag()
    space = bits.enum()
    is_grey = space == 1
    if has_profile:
        return is_grey, None, 0.0, ()
    if space > 1:
        raise Unread("in an unknown colour space")
    white_kind = bits.enum()
    white = _point(bits) if white_kind == _OWN else _WHITES.get(white_kind)
    kind = 1 if is_grey else bits.enum()
    primaries = (
        tuple(_point(bits) for _ in range(3)) if kind == _OWN else _POINTS.get(kind)
    )
    if white is None or primaries is None:
        raise Unread("of unknown primaries")
    is_usual = white_kind == 1 and kind != _OWN
    points = (
        ()
        if is_usual or is_grey
        else tuple(value for point in (white, *primaries) for value in point)
    )
    if bits.flag():
        return (
            is_grey,
            (_PRIMARIES.get(kind, 1), 2, False),
            bits.take(24) / 10_000_000,
            points,
        )
    return is_grey, (_PRIMARIES.get(kind, 1), bits.enum(), False), 0.0, points


def _point(bits: _Bits) -> tuple[float, float]:
    """A chromaticity, x and y in millionths, each with its sign in the lowest bit."""
    values = [
        bits.choice((0, 19), (524288, 19), (1048576, 20), (2097152, 21))
        for _ in range(2)
    ]
    x, y = (-(value // 2) - 1 if value % 2 else value // 2 for value in values)
    return x / 1e6, y / 1e6


# ---------------------------------------------------------------- files


def open_jxl(file: IO[bytes]) -> Image.Image:
    """The image, not decoded. Raises OSError or ValueError for a damaged file, Unread
    for one of a kind that is not read."""
    import imagecodecs

    data = file.read()
    codestream, has_jpeg = _codestream_of(data)
    if has_jpeg:
        return Image.open(
            io.BytesIO(imagecodecs.jpegxl_decode_jpeg(data, numthreads=1)),
            formats=("JPEG",),
        )
    header = read_header(codestream)
    if header.is_float:
        raise Unread(f"of float{header.bits}")
    if header.codes is None:
        raise Unread("with an ICC profile, which its decoder does not give")
    return JxlImageFile(data, header)


def _codestream_of(data: bytes) -> tuple[bytes, bool]:
    """The beginning of the codestream, and whether the file is a packed JPEG."""
    if data.startswith(BEGINNINGS[0]):
        return data, False
    boxes = list(boxes_of(data))
    has_jpeg = any(kind == b"jbrd" for kind, _ in boxes)
    for kind, held in boxes:
        if kind in (b"jxlc", b"jxlp"):
            return (held[4:] if kind == b"jxlp" else held), has_jpeg
    return b"", has_jpeg


class JxlImageFile(ImageFile.ImageFile):
    """A JPEG XL that was not decoded: as the image files of Pillow.

    Example::

        with open("photos/a.jxl", "rb") as file:
            image = open_jxl(file)
            values_HWP = image.values()
    """

    format = "JXL"
    format_description = "JPEG XL"

    def __init__(self, data: bytes, header: JxlHeader) -> None:
        self.header = header
        self._data = data
        super().__init__(io.BytesIO(data))

    def _open(self) -> None:
        header = self.header
        self._size = header.width, header.height
        self._mode = ("L" if header.is_grey else "RGB") + (
            "A" if header.has_alpha else ""
        )
        self.n_frames = 2 if header.is_animated else 1
        self.tile = []

    def values(self) -> Any:
        """The pixels [H, W, P], uint8 or uint16 of the full range, upright."""
        import imagecodecs
        import numpy

        try:
            values_HWP = numpy.asarray(imagecodecs.jpegxl_decode(self._data))
        except imagecodecs.JpegxlError as error:
            raise OSError(f"broken data stream: {error}") from error
        values_HWP = values_HWP.reshape(*values_HWP.shape[:2], -1)
        bits = self.header.bits
        if bits != 8:  # as many as the header says, in the lower ones
            top = (1 << bits) - 1
            wide_HWP = values_HWP.astype(numpy.uint64).clip(0, top)
            values_HWP = ((wide_HWP * 65535 + top // 2) // top).astype(numpy.uint16)
        if values_HWP.shape != (self.height, self.width, len(self.getbands())):
            raise OSError(
                f"its pixels are {_times(values_HWP.shape)}, and its header says otherwise"
            )
        return values_HWP

    def load(self) -> Any:
        import numpy

        if self._im is None:
            values_HWP = self.values()
            if values_HWP.dtype == numpy.uint16:
                values_HWP = (
                    (values_HWP.astype(numpy.uint32) * 255 + 32767) // 65535
                ).astype(numpy.uint8)
            pixels = values_HWP[..., 0] if values_HWP.shape[2] == 1 else values_HWP
            self.im = Image.fromarray(numpy.ascontiguousarray(pixels)).im
        return super().load()


Image.MIME.setdefault("JXL", "image/jxl")


def _times(numbers: Sequence[int]) -> str:
    return " x ".join(map(str, numbers))
