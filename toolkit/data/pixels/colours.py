"""Which colours an image file holds: one question, answered from its header by
`colours_of`.

The first of these that a file has decides, as browsers decide it:

1. HDR that is given by a code of ITU-T H.273: the `cICP` chunk of a PNG, or the tag
   `cicp` of an ICC profile. Profiles cannot describe HDR otherwise (PNG specification,
   third edition, 11.3.2.6; ICC.1:2022, 9.2.17).
2. An ICC profile.
3. A code of H.273: `nclx` of AVIF and HEIC (ISO/IEC 14496-12, 12.1.5), in an AVIF
   without it the sequence header; `cICP` of PNG. The VUI of HEVC, which pi-heif does
   not give, is not asked.
4. PNG's `sRGB`, then `gAMA` and `cHRM` (PNG specification, 11.3.2).
5. TIFF and EXIF: the colour space, Adobe RGB as cameras mark it (65535 and
   interoperability index R03: DCF 2.0, JEITA CP-3461), then the tags WhitePoint,
   PrimaryChromaticities and TransferFunction (TIFF 6.0, section 20).
6. sRGB.

Where primaries are given without a curve, the curve is that of sRGB, and for the
primaries of Adobe RGB its own.

Imports neither torch nor numpy: the scan asks it of every file.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import IO, Any, NamedTuple, cast

from PIL import Image, ImageCms

from toolkit.data.pixels.avif import Codes, codes_of_avif
from toolkit.data.pixels.unread import NARROW, ZSCALE, Unread


class Primaries(NamedTuple):
    """CIE 1931 chromaticities (x, y) of the three primaries and of white.

    >>> BT709.white
    (0.3127, 0.329)
    """

    red: tuple[float, float]
    green: tuple[float, float]
    blue: tuple[float, float]
    white: tuple[float, float]


class Transfer(NamedTuple):
    """The curve from the values of a file to light.

    >>> Transfer("power", gamma=2.2).gamma
    2.2
    """

    curve: str
    """One of `conversion.CURVES`."""

    gamma: float = 0.0
    """Exponent of the curve 'power', from values to light."""


_D65 = (0.3127, 0.3290)
BT709 = Primaries((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), _D65)
ADOBE_RGB = Primaries((0.640, 0.330), (0.210, 0.710), (0.150, 0.060), _D65)
SRGB_CURVE = Transfer("srgb")

_PRIMARIES = {
    1: BT709,
    5: Primaries((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), _D65),
    6: Primaries((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),
    9: Primaries((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    12: Primaries((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
}
"""ColourPrimaries of ITU-T H.273 (07/2024), table 2. Others, such as 2, mean that they
are not known."""

_BT709_CURVE = Transfer("bt709")
_TRANSFERS = {
    1: _BT709_CURVE,
    4: Transfer("power", 2.2),
    6: _BT709_CURVE,
    8: Transfer("linear"),
    13: SRGB_CURVE,
    14: _BT709_CURVE,
    15: _BT709_CURVE,
    16: Transfer("pq"),
    18: Transfer("hlg"),
}
"""TransferCharacteristics of ITU-T H.273 (07/2024), table 3."""

_NOT_READ = {4, 7, 8, 10, 11, 22}, {5, 7, 9, 10, 11, 12, 17}
"""Primaries and curves of these tables that no camera, phone or browser writes: of
film, old television and cinemas."""

_HDR = {"pq": "HDR (PQ)", "hlg": "HDR (HLG)"}
_HDR_CODES = (16, 18)
_NAMES = {
    (1, "srgb"): "sRGB",
    (1, "bt709"): "BT.709",
    (5, "bt709"): "BT.601",
    (6, "bt709"): "BT.601",
    (9, "bt709"): "BT.2020",
    (9, "srgb"): "BT.2020",
    (12, "srgb"): "Display P3",
}
"""Names of common pairs of primaries, as a code of H.273, and curve."""

TELEVISION = ("BT.601", "BT.709")
"""Names of colours as which sRGB is often marked by mistake: by libheif 1.17 (its issue
1417, libvips' 3731), and by libultrahdr before its pull request 458."""

_READING = 1
"""Raised when files of the same colours are converted otherwise, so that nothing cached
of them is used."""


@dataclass(frozen=True)
class Colours:
    """The colours of a file.

    >>> colours = from_codes(primaries=9, transfer=16)
    >>> colours.name, colours.is_hdr
    ('HDR (PQ)', True)
    """

    name: str
    """For messages: `Display P3`, `HDR (PQ)`."""

    primaries: Primaries = BT709
    transfer: Transfer = SRGB_CURVE
    profile: bytes = b""
    """The ICC profile that decides; then the other fields have no effect."""

    changes: bool = True
    """Whether the values of the file differ from those of sRGB."""

    fault: str = ""
    """Why the colour information of the file is not used, for a message; empty: it is
    used, or there is none."""

    @property
    def is_hdr(self) -> bool:
        """Whether the file holds light above the white of a page: its curve is PQ or
        HLG, and it has no ICC profile."""
        return self.transfer.curve in _HDR and not self.profile

    @property
    def reading(self) -> str:
        """Part of the identity of the pixels. Empty: the first version of the program
        read the same pixels."""
        if self.profile or not self.changes:
            return ""
        # `False`: earlier versions also read values from 16 to 235
        return f"colours {_READING} {list(self.primaries)} {list(self.transfer)} False"


SRGB = Colours("sRGB", changes=False)


def from_codes(primaries: int, transfer: int) -> Colours:
    """The colours of codes of ITU-T H.273. Unknown codes count as sRGB. Raises Unread
    for codes that are not read.

    >>> from_codes(12, 13).name
    'Display P3'
    """
    name = f"H.273 {primaries}/{transfer}"
    if primaries in _NOT_READ[0] or transfer in _NOT_READ[1]:
        raise Unread(f"an image of the colours {name}", ZSCALE)
    return _named(
        _PRIMARIES.get(primaries, BT709), _TRANSFERS.get(transfer, SRGB_CURVE), name
    )


def _named(primaries: Primaries, transfer: Transfer, otherwise: str) -> Colours:
    """The colours of primaries and a curve, with their usual name, or the name
    `otherwise`."""
    if primaries == BT709 and transfer == SRGB_CURVE:
        return SRGB
    code = next((code for code, known in _PRIMARIES.items() if known == primaries), 0)
    name = _HDR.get(transfer.curve) or _NAMES.get((code, transfer.curve), otherwise)
    return Colours(name, primaries, transfer)


def colours_of(image: Image.Image) -> Colours:
    """The colours of an opened image that was not decoded. Reads a few bytes of its
    header. Damaged colour information is ignored. Raises Unread for colours that are
    not read."""
    profile = cast("bytes", image.info.get("icc_profile") or b"")
    # beside a profile those of an AVIF or HEIC do not count
    codes = _codes(image) if image.format == "PNG" or not profile else None
    if profile:
        for given in (codes, _codes_of_profile(profile)):
            if given and given[1] in _HDR_CODES:
                return from_codes(*given)
        return _of_profile(profile, "L" if is_grey_webp(image) else image.mode)
    if codes:
        return from_codes(*codes)
    if image.format == "BMP":
        return _of_bmp(_header_of_bmp(image))
    if image.format == "PNG" and "srgb" in image.info:
        return SRGB
    if image.format == "PNG" and not {"gamma", "chromaticity"}.isdisjoint(image.info):
        points = _of_points(image.info.get("chromaticity", ()))
        return _of_numbers(points, float(image.info.get("gamma", 0)), "cHRM")
    return _of_exif(image)


# ---------------------------------------------------------------- codes of H.273


def _codes(image: Image.Image) -> Codes | None:
    """The codes of H.273 in the header of the file."""
    if image.format == "HEIF":
        nclx = image.info.get("nclx_profile")
        names = ("color_primaries", "transfer_characteristics")
        return (int(nclx[names[0]]), int(nclx[names[1]])) if nclx else None
    file: IO[bytes] | None = getattr(image, "fp", None)
    if file is None or image.format not in ("PNG", "AVIF"):
        return None
    # a buffered file would read 8 kB for each chunk
    raw: IO[bytes] = getattr(file, "raw", file)
    place = raw.tell()
    try:
        return _cicp_of_png(raw) if image.format == "PNG" else codes_of_avif(raw)
    except (OSError, struct.error, IndexError):
        return None
    finally:
        raw.seek(place)


_MOST_CHUNKS = 1000


def _cicp_of_png(file: IO[bytes]) -> Codes | None:
    """The chunk `cICP`, which lies before the pixels."""
    at = 8
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = file.read(12)
        length, kind = struct.unpack(">I4s", head[:8])
        if kind in (b"IDAT", b"IEND"):
            return None
        if kind == b"cICP" and length == 4:
            return _of_full_range(head[8:12])
        at += 12 + length
    return None


def _of_full_range(codes: bytes) -> Codes:
    """Primaries and transfer of the four bytes of `cICP` and `cicp`."""
    primaries, transfer, _, is_full = codes
    if not is_full:
        raise Unread("an image whose black is 16 and white 235 of 255", NARROW)
    return primaries, transfer


# ---------------------------------------------------------------- ICC profiles

PROFILE_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
"""Colour space of a profile -> mode of the pixels that it is for."""

_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_CALLED = {
    "L": "grey",
    "RGB": "RGB",
    "RGBA": "RGB",
    "RGBX": "RGB",
    "P": "RGB",
    "CMYK": "CMYK",
}
"""Mode of pixels -> its name in messages."""

_AS_SRGB = 3
"""Levels of 255 within which a profile is sRGB by another name."""


def read_profile(profile: bytes) -> tuple[ImageCms.ImageCmsProfile | None, str]:
    """The profile and an empty text; or None and the fault: the profile is damaged, or
    of a kind that no image mode has.

    >>> read_profile(b"no profile")
    (None, 'its colour profile is damaged: taken as sRGB')
    """
    try:
        icc_profile = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except OSError:
        return None, "its colour profile is damaged: taken as sRGB"
    if profile_mode(icc_profile) is None:
        return None, "its colour profile is of an unknown kind: taken as sRGB"
    return icc_profile, ""


def profile_mode(profile: ImageCms.ImageCmsProfile) -> str | None:
    """The mode of Pillow for the pixels that an ICC profile describes; None for a
    colour space without one.

    >>> profile_mode(srgb_profile())
    'RGB'
    """
    return PROFILE_MODES.get(profile.profile.xcolor_space.strip())


@cache
def srgb_profile() -> ImageCms.ImageCmsProfile:
    """A new ICC profile of sRGB, as the target of a conversion."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _tags_of(profile: bytes) -> dict[bytes, bytes]:
    """The tags of an ICC profile (ICC.1:2022, 7.3)."""
    tags: dict[bytes, bytes] = {}
    count = int.from_bytes(profile[128:132], "big")
    for index in range(min(count, 100)):
        entry = profile[132 + 12 * index : 144 + 12 * index]
        if len(entry) < 12:
            break
        name, offset, length = struct.unpack(">4sII", entry)
        tags[name] = profile[offset : offset + length]
    return tags


@lru_cache(maxsize=64)
def _codes_of_profile(profile: bytes) -> Codes | None:
    """The tag `cicp` of an ICC profile (ICC.1:2022, 10.4), as programs write it for
    HDR. Of other profiles the tag does not count."""
    content = _tags_of(profile).get(b"cicp", b"")
    is_hdr = len(content) >= 12 and content[9] in _HDR_CODES
    return _of_full_range(content[8:12]) if is_hdr else None


class ProfileCurve(NamedTuple):
    """The curve of a channel: a table of light, evenly spaced, or a function.

    >>> profile = matrix_profile(srgb_profile().tobytes())
    >>> len(profile.curves)
    3
    """

    table: tuple[float, ...]
    """Empty: the function counts."""

    numbers: tuple[float, ...] = ()
    """g, a, b, c, d, e, f of ICC.1:2022, table 68: (a x + b)^g + e from d on, c x + f
    below."""


class MatrixProfile(NamedTuple):
    """An ICC profile of three curves and a matrix, which can be computed with any
    number of bits.

    >>> profile = matrix_profile(srgb_profile().tobytes())
    >>> [round(sum(axis), 2) for axis in zip(*profile.columns)]  # XYZ of white
    [0.96, 1.0, 0.82]
    """

    columns: tuple[tuple[float, float, float], ...]
    """XYZ of red, green and blue, for a white of D50; none of a profile of grey."""

    curves: tuple[ProfileCurve, ...]


@lru_cache(maxsize=16)
def matrix_profile(profile: bytes) -> MatrixProfile | None:
    """The curves and the matrix of a profile of RGB or grey; None of one with tables,
    or that is damaged."""
    tags = _tags_of(profile)
    names = {b"RGB XYZ ": (b"r", b"g", b"b"), b"GRAYXYZ ": (b"k",) * 3}.get(
        profile[16:24]
    )
    if names is None or b"A2B0" in tags:
        return None
    try:
        coloured = [name for name in names if name != b"k"]
        columns = tuple(_fixed(tags[name + b"XYZ"][8:20]) for name in coloured)
        curves = tuple(_curve_of(tags[name + b"TRC"]) for name in names)
    except (KeyError, struct.error):
        return None
    if None in curves or any(len(column) != 3 for column in columns):
        return None
    return MatrixProfile(cast("Any", columns), cast("Any", curves))


_FLAT = 0.3
"""Light in the middle of a curve, from which on lcms 2.19 is more than a level off: it
is 0.22 with an exponent of 2.2, 0.29 with 1.8, and of linear light, where it is 10
levels off in the dark, 0.5."""


def is_flat_grey(profile: bytes) -> bool:
    """Whether a profile is of grey, with a curve so flat that lcms makes too few steps
    of its dark values."""
    matrix = matrix_profile(profile)
    if matrix is None or matrix.columns:
        return False
    curve = matrix.curves[0]
    if curve.table:
        return curve.table[len(curve.table) // 2] > _FLAT
    g, a, b, _, _, e, _ = curve.numbers
    light: float = (a * 0.5 + b) ** g + e
    return light > _FLAT


def _fixed(data: bytes) -> tuple[float, ...]:
    """Numbers of 16 bits before and 16 behind the point."""
    return tuple(value / 65536 for value in struct.unpack(f">{len(data) // 4}i", data))


_PARAMETERS = {0: 1, 1: 3, 2: 4, 3: 5, 4: 7}
"""Type of a parametric curve -> how many numbers it has."""


def _curve_of(tag: bytes) -> ProfileCurve | None:
    """A curve by its tag, `curv` or `para` (ICC.1:2022, 10.6 and 10.18)."""
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        values = struct.unpack_from(f">{min(count, 65536)}H", tag, 12)
        if count > 1:
            return ProfileCurve(tuple(value / 65535 for value in values))
        return ProfileCurve(
            (), (values[0] / 256 if values else 1.0, 1.0, 0.0, 0.0, -1.0, 0.0, 0.0)
        )
    kind = int.from_bytes(tag[8:10], "big")
    if tag[:4] != b"para" or kind not in _PARAMETERS:
        return None
    g, *given = _fixed(tag[12 : 12 + 4 * _PARAMETERS[kind]])
    a, b, c, d, e, f = (*given, *[0.0] * (6 - len(given)))
    if kind == 0:
        return ProfileCurve((), (g, 1.0, 0.0, 0.0, -1.0, 0.0, 0.0))
    if kind < 3:  # from -b/a on, and below it the constant c
        begin = -b / a if a else 0.0
        return ProfileCurve((), (g, a, b, 0.0, begin, c, c))
    return ProfileCurve((), (g, a, b, c, d, e, f))


def is_grey_webp(image: Image.Image) -> bool:
    """Whether a WebP, which has no grey pixels, has a profile of grey, as a grey
    picture keeps it."""
    profile: bytes = image.info.get("icc_profile") or b""
    return image.format == "WEBP" and profile[16:20] == b"GRAY"


@lru_cache(maxsize=64)
def _of_profile(profile: bytes, mode: str) -> Colours:
    """The colours of an ICC profile: most images of a dataset have the same. mode: of
    the file's pixels."""
    icc_profile, fault = read_profile(profile)
    if icc_profile is None:
        return Colours("sRGB", profile=profile, changes=False, fault=fault)
    wanted = profile_mode(icc_profile)
    is_of_mode = wanted == mode or (wanted == "RGB" and mode != "CMYK")
    if not is_of_mode and not (wanted == "L" and mode in _GREY_MODES):
        fault = (
            f"its colour profile is for {_CALLED[str(wanted)]}, its pixels are "
            f"{_CALLED.get(mode, mode)}: taken as sRGB"
        )
        return Colours("sRGB", profile=profile, changes=False, fault=fault)
    description = (
        str(icc_profile.profile.profile_description or "").strip() or "an ICC profile"
    )
    return Colours(description[:60], profile=profile, changes=_differs(icc_profile))


def _differs(profile: ImageCms.ImageCmsProfile) -> bool:
    """Whether a profile gives colours that sRGB does not give."""
    mode = profile_mode(profile)
    if mode not in ("L", "RGB"):
        return True
    levels = (0, 64, 128, 192, 255)
    pixels = [(r, g, b) for r in levels for g in levels for b in levels]
    image = Image.new("RGB", (len(pixels), 1))
    image.putdata(pixels)
    if mode == "L":
        image = image.convert("L")
    try:
        converted = cast(
            "Image.Image",
            ImageCms.profileToProfile(image, profile, srgb_profile(), outputMode="RGB"),
        )
    except ImageCms.PyCMSError:
        return False
    pairs = zip(image.convert("RGB").tobytes(), converted.tobytes(), strict=True)
    return max(abs(a - b) for a, b in pairs) > _AS_SRGB


# ---------------------------------------------------------------- numbers: gAMA, cHRM,
# TIFF, EXIF

_ADOBE_CURVE = Transfer("power", 563 / 256)
"""Source: Adobe RGB (1998) color image encoding, 4.3.4.2: an exponent of 2 + 51/256."""

_ADOBE_RGB = Colours("Adobe RGB", ADOBE_RGB, _ADOBE_CURVE)

_SRGB_GAMMA = 0.45455
_SAME_GAMMA = 0.05
"""Relative difference below which libpng 1.6 takes two gammas for one
(PNG_GAMMA_THRESHOLD)."""

_SAME_POINT = 0.002


def _of_numbers(primaries: Primaries, gamma: float, source: str) -> Colours:
    """The colours of primaries and of an exponent from light to values (0: none is
    given), with the field of the file for messages.

    An exponent of about 1/2.2 with the primaries of sRGB is sRGB: the values that the
    PNG specification (11.3.2.5) asks writers of sRGB to add for readers that know
    nothing else.
    """
    is_meant = 0.1 <= gamma <= 10
    is_usual = not is_meant or abs(gamma / _SRGB_GAMMA - 1) <= _SAME_GAMMA
    if not is_meant:
        transfer = _ADOBE_CURVE if primaries == ADOBE_RGB else SRGB_CURVE
    else:
        transfer = Transfer("linear") if gamma == 1 else Transfer("power", 1 / gamma)
    if primaries == BT709:
        return SRGB if is_usual else Colours(f"gamma {gamma:.3g}", primaries, transfer)
    if primaries == ADOBE_RGB and is_usual:
        return Colours("Adobe RGB", primaries, transfer)
    return _named(primaries, transfer, f"the primaries of {source}")


def _is_same_point(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two chromaticities are equal but for rounding."""
    return max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= _SAME_POINT


def _of_points(points: Sequence[float]) -> Primaries:
    """The primaries of four chromaticities: white, red, green, blue. Those that are
    nearly a known set are that set, as rounded values mean it; those that are missing
    or span no triangle are sRGB's."""
    if len(points) != 8 or not all(math.isfinite(value) for value in points):
        return BT709
    white, red, green, blue = zip(points[::2], points[1::2], strict=True)
    area = (green[0] - red[0]) * (blue[1] - red[1]) - (blue[0] - red[0]) * (
        green[1] - red[1]
    )
    primaries = Primaries(red, green, blue, white)
    if abs(area) < 0.01 or not all(0 < point[1] <= 1 for point in primaries):
        return BT709
    for known in (BT709, ADOBE_RGB, *_PRIMARIES.values()):
        if all(map(_is_same_point, known, primaries)):
            return known
    return primaries


# ---------------------------------------------------------------- BMP

_BMP_HEADER = 14
"""Where its information header begins; its fields are those of Microsoft's
BITMAPV4HEADER and BITMAPV5HEADER."""

_CALIBRATED = b"\0\0\0\0"
_EMBEDDED = b"DEBM"
_LINKED = b"KNIL"


def _header_of_bmp(image: Image.Image) -> bytes:
    """The information header of a BMP, of version 4 or 5; empty for older ones, which
    say no colours."""
    file: IO[bytes] | None = getattr(image, "fp", None)
    if file is None or image.format != "BMP":
        return b""
    place = file.tell()
    file.seek(_BMP_HEADER)
    header = file.read(124)
    file.seek(place)
    length = int.from_bytes(header[:4], "little")
    return header[:length] if min(length, len(header)) >= 108 else b""


def profile_of_bmp(image: Image.Image) -> bytes:
    """The ICC profile inside an opened BMP of version 5, which Pillow 13 leaves out;
    empty where there is none."""
    header = _header_of_bmp(image)
    if len(header) < 124 or header[56:60] != _EMBEDDED:
        return b""
    at, length = struct.unpack_from("<II", header, 112)
    file: IO[bytes] = cast("Any", image).fp
    place = file.tell()
    file.seek(_BMP_HEADER + at)
    profile = file.read(min(length, _MOST_OF_PROFILE))
    file.seek(place)
    return profile


_MOST_OF_PROFILE = 1 << 24


def _of_bmp(header: bytes) -> Colours:
    """The colours of a BMP without a profile in it: sRGB, also where the endpoints are
    zeros, as most programs write them. Raises Unread for other endpoints."""
    if header[56:60] == _LINKED:
        return replace(
            SRGB, fault="its colour profile is in another file: taken as sRGB"
        )
    if header[56:60] == _CALIBRATED and any(header[60:96]):
        raise Unread("a BMP that gives its colours by endpoints")
    return SRGB


# ---------------------------------------------------------------- TIFF and EXIF

_EXIF_IFD = 0x8769
_INTEROPERABILITY_IFD = 0xA005
_COLOUR_SPACE = 0xA001
_GAMMA = 0xA500
_INDEX = 1
_TRANSFER_FUNCTION = 301
_WHITE_POINT = 318
_CHROMATICITIES = 319
_EXIF_SRGB, _EXIF_ADOBE, _EXIF_OTHER = 1, 2, 65535
"""Colour spaces of EXIF. The second is not in the standard; some cameras write it
(ExifTool's table of EXIF tags)."""


def _of_exif(image: Image.Image) -> Colours:
    """The colours that the tags of TIFF or EXIF say."""
    has_tags = "exif" in image.info or image.format in ("JPEG", "MPO", "TIFF")
    # the tags that a camera wrote stay when it is made CMYK
    if not has_tags or image.mode == "CMYK":
        return SRGB
    try:
        exif = Image.Image.getexif(image)  # that of a PNG would decode the image first
        camera = exif.get_ifd(_EXIF_IFD)
        index = exif.get_ifd(_INTEROPERABILITY_IFD).get(_INDEX)
        points = list[float]()
        for tag in (_WHITE_POINT, _CHROMATICITIES):
            points += map(float, exif.get(tag, ()))
        curve = [float(value) for value in exif.get(_TRANSFER_FUNCTION, ())]
        gamma = float(camera.get(_GAMMA, 0))
    except (
        SyntaxError,
        struct.error,
        LookupError,
        ValueError,
        TypeError,
        OSError,
        ArithmeticError,
    ):
        return SRGB  # the metadata is damaged, the image need not be
    space = camera.get(_COLOUR_SPACE)
    mark = (index.decode("latin-1") if isinstance(index, bytes) else str(index)).strip(
        "\0 "
    )
    if space == _EXIF_ADOBE or (space == _EXIF_OTHER and mark == "R03"):
        return _ADOBE_RGB
    if space == _EXIF_SRGB:
        return SRGB
    if len(points) == 6:  # the white is left out
        points = [*_D65, *points]
    exponent = _exponent_of(curve) or (gamma and 1 / gamma)
    if space == _EXIF_OTHER and not (points or exponent or mark == "R98"):
        return replace(
            SRGB,
            fault="its EXIF says that its colours are not sRGB, but not which they are: taken as sRGB",
        )
    return _of_numbers(_of_points(points), exponent, "its tags")


def _exponent_of(curve: Sequence[float]) -> float:
    """The exponent from light to values by a table of TIFF, or by three tables one after
    the other. 0 where there is none, and for the curve of sRGB and curves that are not
    an exponent."""
    count = len(curve) // 3 if len(curve) % 3 == 0 else len(curve)
    if count < 16:
        return 0.0
    places = [round(share * (count - 1)) for share in (0.2, 0.4, 0.6, 0.8)]
    values = [(place / (count - 1), curve[place] / 65535) for place in places]
    if any(not 0 < light < 1 for _, light in values):
        return 0.0
    exponents = [math.log(light) / math.log(value) for value, light in values]
    if max(exponents) - min(exponents) > 0.05 * min(exponents):
        return 0.0
    mean = sum(exponents) / len(exponents)
    return 1.0 if abs(mean - 1) < 0.01 else 1 / mean
