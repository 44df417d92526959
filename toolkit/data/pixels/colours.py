"""Which colours an image file holds: sRGB, those of an ICC profile, or the gamma of a
PNG. `colours_of` tells them from the header.

Any other statement is refused by its name, so that no image is trained in colours that
are not its own: HDR, codes of ITU-T H.273 that are not sRGB's (`cICP` of PNG, `nclx` of
AVIF and HEIC, AV1 without it), other primaries of PNG, TIFF and EXIF, and colours of a
BMP. A profile goes before codes, except those of HDR.

Imports neither torch nor numpy: the scan asks it of every file.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import IO, Any, cast

from PIL import Image, ImageCms

from toolkit.data.pixels.unread import Unread

_SRGB_CODES = (1, 2), (2, 13)
"""Primaries and curves of ITU-T H.273 that are sRGB's, or not given."""

_HDR = {16: "HDR (PQ)", 18: "HDR (HLG)"}
_SRGB_POINTS = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""White, red, green and blue."""

_SRGB_GAMMA = 0.45455
_SAME_GAMMA = 0.05
"""Relative difference below which libpng 1.6 takes two gammas for one
(PNG_GAMMA_THRESHOLD)."""

_AS_SRGB = 3
"""Levels of 255 within which a profile is sRGB by another name."""

PROFILE_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
"""Colour space of a profile -> mode of the pixels that it is for."""

_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_CALLED = {"L": "grey", "CMYK": "CMYK"}
"""Mode of pixels -> its name in messages; others are RGB."""


@dataclass(frozen=True)
class Colours:
    """The colours of a file.

    >>> Colours("gamma 1", gamma=1.0).reading
    'gamma 1.0'
    """

    name: str
    """For messages: `Display P3`."""

    profile: bytes = b""
    """The ICC profile that decides."""

    gamma: float = 0.0
    """Exponent from values to light, with the primaries of sRGB; 0: none."""

    changes: bool = True
    """Whether the values of the file differ from those of sRGB."""

    fault: str = ""
    """Why the colour information of the file is not used, for a message; empty: it is
    used, or there is none."""

    @property
    def reading(self) -> str:
        """Part of the identity of the pixels. Empty: the first version of the program
        read the same pixels."""
        return f"gamma {self.gamma}" if self.gamma else ""


SRGB = Colours("sRGB", changes=False)


def colours_of(image: Image.Image) -> Colours:
    """The colours of an opened image that was not decoded. Reads a few bytes of its
    header. Damaged colour information is ignored. Raises Unread for colours that are
    not read."""
    profile = cast("bytes", image.info.get("icc_profile") or b"")
    codes = _codes(image)
    if profile and codes and codes[1] not in _HDR:
        codes = None
    codes = codes or _codes_of_profile(profile)
    if codes and not _are_of_srgb(codes):
        name = _HDR.get(codes[1], "other colours than sRGB")
        raise Unread(f"an image of {name} (H.273 {codes[0]}/{codes[1]})")
    if profile:
        return _of_profile(profile, image.mode)
    if image.format == "BMP":
        _refuse_bmp(image)
    if image.format == "PNG" and not {"srgb", "gamma", "chromaticity"}.isdisjoint(
        image.info
    ):
        return _of_png(image.info)
    return SRGB if codes else _of_exif(image)


# ---------------------------------------------------------------- codes of H.273


def _are_of_srgb(codes: tuple[int, int]) -> bool:
    return codes[0] in _SRGB_CODES[0] and codes[1] in _SRGB_CODES[1]


def _codes(image: Image.Image) -> tuple[int, int] | None:
    """Primaries and transfer by ITU-T H.273 in the header of the file."""
    if image.format == "HEIF":
        nclx = image.info.get("nclx_profile") or {}
        return (
            (int(nclx["color_primaries"]), int(nclx["transfer_characteristics"]))
            if nclx
            else None
        )
    file: IO[bytes] | None = getattr(image, "fp", None)
    if file is None or image.format not in ("PNG", "AVIF"):
        return None
    # a buffered file would read 8 kB for each chunk
    raw: IO[bytes] = getattr(file, "raw", file)
    place = raw.tell()
    try:
        return _cicp_of_png(raw) if image.format == "PNG" else _codes_of_avif(raw)
    except (OSError, struct.error, OverflowError):
        return None
    finally:
        raw.seek(place)


_MOST_CHUNKS = 1000
_MOST_OF_HEADER = 1 << 16
_MOST_OF_SEQUENCE = 64


def _cicp_of_png(file: IO[bytes]) -> tuple[int, int] | None:
    """The chunk `cICP`, which lies before the pixels."""
    at = 8
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        length, kind, content = struct.unpack(">I4s4s", file.read(12))
        if kind in (b"IDAT", b"IEND"):
            return None
        if kind == b"cICP" and length == 4:
            return content[0], content[1]
        at += 12 + length
    return None


def _codes_of_avif(file: IO[bytes]) -> tuple[int, int] | None:
    """The first property `colr` of type `nclx`: that of the picture. Without one, what
    its AV1 says, as in libavif 1.4."""
    file.seek(0)
    header = file.read(_MOST_OF_HEADER)
    _, found, content = header.partition(b"colrnclx")
    if found:
        return struct.unpack(">2H", content[:4])
    of_items = list[tuple[int, int]]()
    for place in _items(io.BytesIO(header.partition(b"iloc")[2])):
        file.seek(place)
        of_items += _codes_of_av1(file.read(_MOST_OF_SEQUENCE))
    return next((codes for codes in of_items if not _are_of_srgb(codes)), None)


def _items(iloc: IO[bytes]) -> Iterator[int]:
    """Where the items of a file begin (ISO/IEC 14496-12, 8.11.3). iloc: the contents of
    that box."""

    def take(size: int) -> int:
        return int.from_bytes(iloc.read(size), "big")

    version = take(4) >> 24
    sizes = take(2)
    offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    number = 4 if version == 2 else 2
    for _ in range(min(take(number), _MOST_CHUNKS)):
        iloc.read(number + 2 * bool(version) + 2)  # its name, where its bytes are
        start = take(base)
        parts = take(2)
        iloc.read(index * bool(version))
        yield start + take(offset)
        iloc.read(
            length + max(0, parts - 1) * (index * bool(version) + offset + length)
        )


def _codes_of_av1(data: bytes) -> list[tuple[int, int]]:
    """The colours in the sequence header of a still picture (AV1, 5.5); empty where the
    data are none, or give no colours."""
    data = data.removeprefix(b"\x12\0")  # the unit that parts pictures
    if data[:1] != b"\x0a":
        return []
    bits = "".join(f"{byte:08b}" for byte in data[2:].ljust(_MOST_OF_SEQUENCE, b"\0"))
    profile = bits[:3]
    if bits[4] == "0":
        raise Unread("an AVIF that has the header of a film, and no nclx")
    at = 10 + 8 + int(bits[10:14], 2) + 1 + int(bits[14:18], 2) + 1 + 6  # sizes, tools
    at += 1 + (profile == "010" and bits[at] == "1") + (profile != "001")  # bits, grey
    codes = int(bits[at + 1 : at + 9], 2), int(bits[at + 9 : at + 17], 2)
    return [codes] if bits[at] == "1" else []


def _codes_of_profile(profile: bytes) -> tuple[int, int] | None:
    """The tag `cicp` of an ICC profile of HDR (ICC.1:2022, 10.4). Of other profiles the
    tag does not count."""
    tags = profile[132 : 132 + 12 * min(profile[131], 100)] if profile[132:] else b""
    at = tags.find(b"cicp")
    offset = int.from_bytes(tags[at + 4 : at + 8], "big")
    content = profile[offset : offset + 12]
    is_hdr = at >= 0 and len(content) == 12 and content[9] in _HDR
    return (content[8], content[9]) if is_hdr else None


# ---------------------------------------------------------------- ICC profiles


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
            f"its colour profile is for {_CALLED.get(str(wanted), 'RGB')}, its pixels are "
            f"{_CALLED.get(mode, 'RGB')}: taken as sRGB"
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


# ---------------------------------------------------------------- numbers: PNG, BMP,
# TIFF, EXIF


def _are_srgb(points: Sequence[float]) -> bool:
    """Whether four chromaticities (white, red, green, blue) are those of sRGB but for
    rounding, or none."""
    if not any(points) or len(points) != len(_SRGB_POINTS):
        return True
    pairs = zip(points, _SRGB_POINTS, strict=True)
    return all(abs(a - b) <= 0.002 for a, b in pairs)


def _of_png(info: dict[Any, Any]) -> Colours:
    """The colours of the chunks `sRGB`, `gAMA` and `cHRM`. A gamma of about 1/2.2 is
    sRGB: the value that the PNG specification (11.3.2.5) asks writers of sRGB to add."""
    if "srgb" in info:
        return SRGB
    if not _are_srgb(info.get("chromaticity", ())):
        raise Unread("a PNG of other primaries than sRGB's (cHRM)")
    gamma = float(info.get("gamma", 0))
    if not 0.1 <= gamma <= 10 or abs(gamma / _SRGB_GAMMA - 1) <= _SAME_GAMMA:
        return SRGB
    return Colours(f"gamma {gamma:.3g}", gamma=1 / gamma)


_BMP_HEADER = 14
"""Where its information header begins; its fields are those of Microsoft's
BITMAPV4HEADER and BITMAPV5HEADER."""


def _refuse_bmp(image: Image.Image) -> None:
    """Raises Unread for a BMP with a profile, or with endpoints that are not zeros."""
    file: IO[bytes] | None = getattr(image, "fp", None)
    if file is None:
        return
    place = file.tell()
    file.seek(_BMP_HEADER)
    header = file.read(124)
    file.seek(place)
    is_new = int.from_bytes(header[:4], "little") >= 108
    space = header[56:60]
    if is_new and (
        space in (b"DEBM", b"KNIL") or (space == bytes(4) and any(header[60:96]))
    ):
        raise Unread("a BMP of other colours than sRGB")


_EXIF_IFD = 0x8769
_INTEROPERABILITY_IFD = 0xA005
_COLOUR_SPACE = 0xA001
_GAMMA = 0xA500
_TRANSFER_FUNCTION = 301
_WHITE_POINT = 318
_CHROMATICITIES = 319
_EXIF_SRGB, _EXIF_ADOBE, _EXIF_OTHER = 1, 2, 65535
"""Colour spaces of EXIF. The second is not in the standard; some cameras write it
(ExifTool's table of EXIF tags)."""


def _of_exif(image: Image.Image) -> Colours:
    """sRGB, unless the tags of TIFF or EXIF say something else. Raises Unread for Adobe
    RGB as cameras mark it (DCF 2.0, JEITA CP-3461), and for other primaries or
    curves."""
    has_tags = "exif" in image.info or image.format == "TIFF"
    # the tags that a camera wrote stay when it is made CMYK
    if not has_tags or image.mode == "CMYK":
        return SRGB
    try:
        exif = Image.Image.getexif(image)  # that of a PNG would decode the image first
        camera = exif.get_ifd(_EXIF_IFD)
        mark = exif.get_ifd(_INTEROPERABILITY_IFD).get(1, "")
        points = list[float]()
        for tag in (_WHITE_POINT, _CHROMATICITIES):
            points += map(float, exif.get(tag, ()))
        has_curve = _TRANSFER_FUNCTION in exif or bool(camera.get(_GAMMA))
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
    mark = mark.decode("latin-1") if isinstance(mark, bytes) else str(mark)
    if space == _EXIF_SRGB:
        return SRGB
    if space == _EXIF_ADOBE or (space == _EXIF_OTHER and mark.startswith("R03")):
        raise Unread("a picture in Adobe RGB without its profile")
    if has_curve or not _are_srgb(points):
        raise Unread("a picture of other colours than sRGB by its tags")
    fault = ""
    if space == _EXIF_OTHER and not (points or mark.startswith("R98")):
        fault = "its EXIF says that its colours are not sRGB, but not which they are: taken as sRGB"
    return Colours("sRGB", changes=False, fault=fault)
