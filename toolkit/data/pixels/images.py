"""The one way an image file becomes pixels: targets, references and masks all come
through here.

Whatever the file holds (16-bit grey, CMYK, a colour profile, HDR, transparency, an EXIF
rotation), the result is an upright 8-bit sRGB image. A file that cannot become one
faithfully is refused with the reason: animations, several pages, floating point, truncated or oversized
files. `colours` says which colours a file holds, `conversion` makes sRGB of them,
`tiff` knows what Pillow reads wrongly.

Shape suffixes: H/W height and width in pixels; P red, green, blue, and opacity where
the image has it.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

from PIL import (
    Image,
    ImageCms,
    ImageColor,
    ImageFile,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
)

from toolkit.contracts.data import Flip, Mask, ResizeCrop, Size
from toolkit.data.pixels import jxl
from toolkit.data.pixels.avif import bits_of_avif
from toolkit.data.pixels.colours import (
    PROFILE_MODES,
    Colours,
    colours_of,
    is_flat_grey,
    is_grey_webp,
    matrix_profile,
    profile_mode,
    profile_of_bmp,
    read_profile,
    srgb_profile,
)
from toolkit.data.pixels.tiff import (
    TiffHeader,
    header_of,
    is_opened,
    orientation_of,
    pages_of,
    read_header,
    read_planes,
    undone,
)
from toolkit.errors import install_command
from toolkit.files.unreadable import LONGEST, denied, in_its_place

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".webp",
        ".avif",
        ".heic",
        ".heif",
        ".jxl",
        ".bmp",
        ".tif",
        ".tiff",
    }
)
"""File name endings (lower case) that are read as images."""

MAX_PIXELS = 120_000_000
"""Largest image that is read, in pixels: about 480 MB while it is decoded."""

MAX_REFERENCE_ASPECT = 200
"""Largest ratio of the sides of a reference. Source: transformers,
image_processing_qwen2_vl.py, `smart_resize`."""

# Pillow's own guard warns from its limit on and refuses at twice that; ours names the
# file and the remedy.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")
_SIXTEEN_BIT = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_PNG_METADATA = frozenset({b"eXIf", b"tEXt", b"iTXt", b"zTXt"})
"""Chunks that may turn a PNG."""

# What Pillow's decoders are known to raise on damaged files; its documentation promises
# only OSError.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

Note = Callable[[str], None]
"""Receives a remark about a file that could be read all the same."""


CLEAR = "is fully transparent"
"""A note of an image."""


class ImageError(ValueError):
    """An image that cannot be used: which file, and what is wrong with it."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


class ImageInfo(NamedTuple):
    """The facts of an image that are needed before its pixels.

    Example::

        info = inspect_header("photos/a.jpg")
        info.size, info.alpha  # (Size(width=1024, height=768), False)
    """

    size: Size
    """After EXIF rotation."""

    alpha: bool
    """Whether it can be transparent anywhere, by its header."""

    notes: tuple[str, ...] = ()
    """Remarks on a file that can be used."""

    verified: bool = False
    """Whether the whole file was read and is good, not only its header."""

    colours: str = ""
    """The colours it is converted from, such as `Display P3`; empty: it is sRGB."""

    is_hdr: bool = False
    """Whether it holds light above the white of a page, which is clipped."""

    reading: str = ""
    """The changes in how it becomes pixels since the first version of the program;
    empty: none. They are part of its identity (`fingerprint.image_digest`)."""


def reference_error(size: Size) -> str:
    """Why an image of this size cannot be a reference, as the rest of a message; empty
    where it can. Its long side may be at most 200 times its short side.

    >>> reference_error(Size(1024, 768))
    ''
    """
    if max(size) <= MAX_REFERENCE_ASPECT * min(size):
        return ""
    most = f"as a control image at most {MAX_REFERENCE_ASPECT} times as long as wide"
    return f"is {size.width} x {size.height}: {most}. Crop it"


def open_image(
    path: Path | str,
    background: str = "",
    note: Note = lambda _: None,
    data: bytes | None = None,
    at_least: int | None = None,
    channels: int = 3,
) -> Image.Image:
    """The image as upright 8-bit sRGB: mode RGB, transparency composited on
    `background` (empty: white); with 4 channels mode RGBA, its transparency kept where
    no background is given.

    data: the file's bytes, where it is not on disk; `path` is its name in messages.
    at_least: a JPEG may come at a half, a quarter or an eighth of its size, much
    faster, if both sides keep so many pixels. Raises ImageError, and only that, for a
    file that cannot be used.
    """
    canvas_colour = ImageColor.getrgb(background or "white")[:3]
    with _reading(path, data) as image:
        colours = colours_of(image)
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        if _is_converted_here(image, colours):
            rgb, alpha = _converted(image, colours, path, data)
        else:
            eight_bit = _to_eight_bit(_decoded(image), path)
            colour, alpha = _split_alpha(eight_bit)
            rgb = _to_srgb(colour, colours, note)
        if alpha is not None:
            rgb.putalpha(alpha)
            if channels == 3 or background:
                rgb = _laid_over(rgb, canvas_colour)
        if channels == 4 and rgb.mode == "RGB":
            rgb.putalpha(255)
        return rgb


def over_white(image: Image.Image) -> Image.Image:
    """A copy of the image as mode RGB, its transparency composited on white.

    >>> over_white(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    if image.has_transparency_data:
        return _laid_over(image.convert("RGBA"), (255, 255, 255))
    return image.convert("RGB")


def _laid_over(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    canvas = Image.new("RGB", image.size, colour)
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def load_alpha(path: Path | str) -> Image.Image:
    """The opacity of an upright image (mode L, 255 is opaque); all opaque when it has
    no transparency.

    Raises ImageError, and only that, for a file that cannot be used.
    """
    with _reading(path) as image:
        upright = _decoded(image)
        _, alpha = _split_alpha(_to_eight_bit(upright, path))
        return alpha or Image.new("L", upright.size, 255)


def open_mask(mask: Mask) -> Image.Image:
    """The image of a mask (mode L), not inverted: colours by their brightness,
    transparency as black. Raises ImageError as `open_image`."""
    if mask.alpha:
        return load_alpha(mask.file)
    return open_image(mask.file, background="black").convert("L")


def image_size(path: Path | str, data: bytes | None = None) -> Size:
    """Width and height after EXIF rotation. Reads the header only, where the format
    keeps EXIF there. data: as of `open_image`. Raises ImageError for a file that cannot
    be used."""
    with _reading(path, data) as image:
        return _upright_size(image)


def media_type(path: Path | str) -> str:
    """The media type, such as `image/png`, by the contents of the file. Reads the header
    only. Raises ImageError."""
    with _reading(path) as image:
        return Image.MIME["JPEG" if image.format == "MPO" else str(image.format)]


def pixel_mode(path: Path | str) -> tuple[str, bool]:
    """The mode of the file's pixels in Pillow's words, and whether they can be
    transparent. Reads the header only. Raises ImageError."""
    with _reading(path) as image:
        return image.mode, image.has_transparency_data


def inspect_image(path: Path | str) -> ImageInfo:
    """The facts of an image after all of its pixels were decoded, so that a damaged
    file is noticed. A JPEG is decoded at an eighth of its size. Raises ImageError."""
    with _reading(path) as image:
        info = _info(image, image.has_transparency_data)
        # JPEG: every byte is still read, but only an eighth of each side is computed.
        image.draft(None, (1, 1))
        decoded = _decoded(image)
        _refuse_wide_values(decoded, path)
        if info.alpha and decoded.convert("RGBA").getchannel("A").getextrema() == (
            0,
            0,
        ):
            info = info._replace(notes=(*info.notes, CLEAR))
        return info._replace(verified=True)


def inspect_header(path: Path | str) -> ImageInfo:
    """The facts from the header only, some 50 times as fast; where the header is not
    enough, the result of `inspect_image`. Raises ImageError."""
    with _reading(path) as image:
        if _header_is_enough(image):
            return _info(image, image.has_transparency_data)
    return inspect_image(path)


def _info(image: Image.Image, alpha: bool) -> ImageInfo:
    """The facts in the header of an image that was not decoded."""
    colours = colours_of(image)
    notes = (colours.fault,) if colours.fault else ()
    name = colours.name if colours.changes else ""
    return ImageInfo(
        _upright_size(image),
        alpha,
        notes,
        False,
        name,
        colours.is_hdr,
        _reading_of(image, colours),
    )


def _reading_of(image: Image.Image, colours: Colours) -> str:
    header = header_of(image)
    parts = [colours.reading, header.reading if header else ""]
    is_new = _is_converted_here(image, colours) or (
        image.format == "BMP" and colours.changes
    )
    if not colours.reading and is_new:
        parts.append("profile 1")
    if (
        image.format == "AVIF"
        and colours.reading
        and find_spec(jxl.PACKAGE)
        and _avif_bits(image) > 8
    ):
        # where another decoder is installed the same file has other pixels
        parts.append("16 bits")
    return " ".join(filter(None, parts))


def _is_converted_here(image: Image.Image, colours: Colours) -> bool:
    """Whether `conversion` makes sRGB of an image that was not decoded: lcms does of 8
    bits with a profile for them."""
    if not colours.profile:
        return bool(colours.reading)
    is_wide = image.mode in _SIXTEEN_BIT or _has_wide_rgb(image)
    is_other = is_wide or is_grey_webp(image) or is_flat_grey(colours.profile)
    return colours.changes and is_other and matrix_profile(colours.profile) is not None


def image_reading(path: Path | str, data: bytes | None = None) -> str:
    """`ImageInfo.reading` of a file; empty for one that cannot be used. Reads its
    header only. data: as of `open_image`."""
    try:
        with _reading(path, data) as image:
            return _reading_of(image, colours_of(image))
    except ImageError:
        return ""


def resize_cover_crop(image: Image.Image, crop: ResizeCrop) -> Image.Image:
    """The image as its bucket wants it: bicubic to `crop.scaled`, then the bucket cut
    out. Pillow weights the colours of RGBA by their opacity, so that transparent pixels
    do not bleed into others."""
    box = (
        crop.left,
        crop.top,
        crop.left + crop.bucket.width,
        crop.top + crop.bucket.height,
    )
    return image.resize(crop.scaled, Image.Resampling.BICUBIC).crop(box)


def flip_image(image: Image.Image, flip: Flip) -> Image.Image:
    """The mirrored image, a new object; the same object for `Flip()`.

    >>> image = Image.new("L", (2, 1))
    >>> image.putpixel((0, 0), 255)
    >>> flip_image(image, Flip(x=True)).getpixel((1, 0))
    255
    """
    if flip.x:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if flip.y:
        return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image


def resize(image: Image.Image, size: Size) -> Image.Image:
    """A reference at exactly this size, by Lanczos as diffusers'
    `VaeImageProcessor.resize` does."""
    return image.resize(size, Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> Tensor:
    """Pixels [P, H, W] float32 in [-1, 1] of an RGB or RGBA image; as diffusers'
    `VaeImageProcessor.preprocess`."""
    import numpy
    import torch

    unit_HWP = numpy.array(image, dtype=numpy.float32) / 255.0
    return 2.0 * torch.from_numpy(unit_HWP.transpose(2, 0, 1).copy()) - 1.0


# ---------------------------------------------------------------- reading


@contextmanager
def _reading(path: Path | str, data: bytes | None = None) -> Iterator[Image.Image]:
    """The opened, not yet decoded file; every way in which it can be unusable becomes
    an ImageError."""
    try:
        with _open(path if data is None else io.BytesIO(data)) as image:
            _refuse_unusable(image, path)
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        reason = _stands_in(path, data)
        if reason:
            raise ImageError(path, reason) from error
        raise ImageError(path, _why_unknown(path, data)) from error
    except jxl.Unread as error:
        raise ImageError(
            path, f"is a JPEG XL {error}, which is not read. {_REMEDY}"
        ) from error
    except FileNotFoundError as error:
        raise ImageError(path, "does not exist") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            path, f"has more than the {MAX_PIXELS // 10**6} megapixels allowed"
        ) from error
    except _DECODE_ERRORS as error:
        if isinstance(error, PermissionError):
            cause = denied(Path(path))
            raise ImageError(
                path, f"cannot be read: {cause.what}. {cause.remedy}"
            ) from error
        # of the system; those of the decoders have no number
        if isinstance(error, OSError) and error.errno:
            raise ImageError(path, f"cannot be read: {error.strerror}") from error
        kind = _unread_jpeg(_beginning(path, data))
        if kind:
            raise ImageError(
                path, f"is {kind}, which is not read. {_REMEDY}"
            ) from error
        raise ImageError(
            path, f"cannot be read ({error}): truncated or damaged"
        ) from error


def _stands_in(path: Path | str, data: bytes | None) -> str:
    """The kind of a file that is in place of an image, such as a pointer of Git LFS,
    with the remedy; empty for other unknown files."""
    with suppress(OSError):  # then the other error is told
        contents = data
        if contents is None:
            with open(path, "rb") as file:
                contents = file.read(LONGEST + 1)
        return in_its_place(contents)
    return ""


def _open(file: Path | str | IO[bytes]) -> Image.Image:
    """Photographs of iPhones (HEIC) and JPEG XL are read from the first unknown file
    on, whatever it is named: their decoders take time to be imported."""
    try:
        return _open_with_pillow(file)
    except UnidentifiedImageError:
        if not find_spec(jxl.PACKAGE):
            raise
        with (
            Path(file).open("rb")
            if isinstance(file, Path | str)
            else nullcontext(file) as opened
        ):
            opened.seek(0)
            is_jxl = opened.read(12).startswith(jxl.BEGINNINGS)
            opened.seek(0)
            if not is_jxl:
                raise
            return jxl.open_jxl(opened)


def _open_with_pillow(file: Path | str | IO[bytes]) -> Image.Image:
    try:
        image = Image.open(
            file, formats=(*_FORMATS, *(("HEIF",) if "HEIF" in Image.OPEN else ()))
        )
        profile = profile_of_bmp(image)
        if profile:
            image.info["icc_profile"] = profile
        return image
    except UnidentifiedImageError:
        if "HEIF" in Image.OPEN or not find_spec("pi_heif"):
            raise
    from pi_heif import register_heif_opener

    register_heif_opener()
    return Image.open(file, formats=("HEIF",))


_HEIC_BRANDS = (
    b"heic",
    b"heix",
    b"heim",
    b"heis",
    b"hevc",
    b"hevx",
    b"hevm",
    b"hevs",
    b"mif1",
    b"msf1",
)
_REMEDY = "Save it as PNG, with 8 or 16 bits per channel"
_OTHER_FORMATS = {
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"8BPS": "Photoshop document",
    b"v/1\x01": "OpenEXR image",
    b"%PDF": "PDF",
    b"PK\x03\x04": "zip archive",
}
"""First bytes of files that are not read -> their kind."""


def _why_unknown(path: Path | str, data: bytes | None) -> str:
    """Why no decoder takes a file: it is of a kind that is not read, its decoder is not
    installed, or it is damaged."""
    what = "is not a JPEG, PNG, WebP, AVIF, HEIC, BMP or TIFF image, or is damaged"
    beginning = _beginning(path, data)
    if not beginning.strip(b"\0"):
        state = "begins with zeros" if beginning else "is empty"
        return f"{state}, as after a broken download. Copy or download it again"
    try:
        with Path(path).open("rb") if data is None else io.BytesIO(data) as file:
            header = read_header(file)
    except OSError:
        return what
    if header is not None:
        if is_opened(header, beginning[:2]):
            return what
        return f"is a TIFF of {header}, which is not read. {_REMEDY}"
    kind = _unread_jpeg(beginning)
    if kind:
        return f"is {kind}, which is not read. {_REMEDY}"
    for begin, name in _OTHER_FORMATS.items():
        if beginning.startswith(begin):
            article = "an" if name[0] == "O" else "a"
            return f"is {article} {name}, which is not read. {_REMEDY}"
    if (
        beginning[4:8] == b"ftyp"
        and beginning[8:12] in _HEIC_BRANDS
        and not find_spec("pi_heif")
    ):
        return (
            f"{what} (HEIC needs the package 'pi-heif': {install_command('pi-heif')})"
        )
    if beginning.startswith(jxl.BEGINNINGS) and not find_spec(jxl.PACKAGE):
        return f"is a JPEG XL, which needs the package '{jxl.PACKAGE}' (extra 'jxl'): {install_command(jxl.PACKAGE)}"
    return what


def _beginning(path: Path | str, data: bytes | None) -> bytes:
    """The first bytes of a file; none where it cannot be read."""
    try:
        with Path(path).open("rb") if data is None else io.BytesIO(data) as file:
            return file.read(1 << 16)
    except OSError:
        return b""


def _unread_jpeg(beginning: bytes) -> str:
    """The kind of a JPEG that its decoder does not read, by the marker that begins its
    frame; else empty.

    Source of the layout: ITU-T T.81, table B.1 and B.2.2.
    """
    if beginning[:2] != b"\xff\xd8":
        return ""
    at = 2
    while at + 9 <= len(beginning) and beginning[at] == 0xFF:
        marker = beginning[at + 1]
        length = int.from_bytes(beginning[at + 2 : at + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2):
            bits = beginning[at + 4]
            return "" if bits == 8 else f"a JPEG of {bits} bits"
        if marker in (0xC3, 0xC7, 0xCB, 0xCF):
            return "a lossless JPEG"
        at += 2 + length
    return ""


def _refuse_unusable(image: Image.Image, path: Path | str) -> None:
    """Raises ImageError for images that cannot be used by their header alone."""
    if image.width * image.height > MAX_PIXELS:
        megapixels = image.width * image.height / 1e6
        limit = f"at most {MAX_PIXELS // 10**6} are allowed"
        raise ImageError(
            path, f"has {megapixels:.0f} megapixels, {limit}. Make it smaller"
        )
    # A JPEG with several images (MPO) is a photograph with previews, as HEIC may be:
    # its first image is meant.
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        frames = pages_of(image)
    else:
        if image.format in ("JPEG", "MPO", "HEIF"):
            frames = 1
        else:
            frames = getattr(image, "n_frames", 1)
    if frames > 1:
        kind = "pages" if image.format == "TIFF" else "frames"
        state = "holds" if image.format == "TIFF" else "is animated:"
        raise ImageError(path, f"{state} {frames} {kind}. Save one of them as PNG")
    if image.format == "GIF":
        raise ImageError(path, "is a GIF, which is not supported. Save it as PNG")
    if image.format == "AVIF" and not find_spec(jxl.PACKAGE):
        colours = colours_of(image)
        if colours.is_hdr:
            what = f"is {colours.name}, of which Pillow gives 8 bits, too few for its range"
            install = f"Install the package '{jxl.PACKAGE}' (extra 'hdr'): {install_command(jxl.PACKAGE)}"
            raise ImageError(path, f"{what}. {install}; or save it as PNG")
    header = header_of(image)
    if header is not None and not header.is_read:
        raise ImageError(path, f"is a TIFF of {header}, which is not read. {_REMEDY}")
    if image.mode == "F":
        raise ImageError(
            path,
            "holds floating-point pixels, whose range is unknown. Save it with 8 or 16 bits",
        )


def _header_is_enough(image: Image.Image) -> bool:
    """Whether the header of an image that was not decoded tells all that is to be known
    before its pixels are needed, and its file is as long as its format says.

    Not of other formats, WebP with transparency and PNG with a colour profile (which
    may be all clear).
    """
    file: IO[bytes] | None = getattr(image, "fp", None)
    usual = image.format in ("JPEG", "MPO") or (
        image.format == "WEBP" and image.mode == "RGB"
    )
    if file is None or not (
        usual or (image.format == "PNG" and "icc_profile" not in image.info)
    ):
        return False
    place = file.tell()
    if image.format == "PNG":
        file.seek(-8, os.SEEK_END)
        whole = file.read(4) == b"IEND"
    elif image.format != "WEBP":
        file.seek(-2, os.SEEK_END)
        whole = file.read(2) == b"\xff\xd9"
    else:
        file.seek(4)
        whole = int.from_bytes(file.read(4), "little") + 8 == file.seek(0, os.SEEK_END)
    file.seek(place)
    return whole


def _says_all_before_pixels(file: IO[bytes]) -> bool:
    """Whether an open PNG is whole, and has no metadata behind its pixels.

    Source of the layout: the PNG specification, chapter 5.
    """
    raw = getattr(file, "raw", file)  # a buffered file would read 8 kB for each chunk
    place = raw.tell()
    length = raw.seek(0, os.SEEK_END)
    at = 8
    kinds = list[bytes]()
    while at + 12 <= length:
        raw.seek(at)
        head = raw.read(8)
        at += 12 + int.from_bytes(head[:4], "big")
        if at <= length:
            kinds.append(head[4:])
    raw.seek(place)
    pixels = kinds.index(b"IDAT") if b"IDAT" in kinds else 0
    return kinds[-1:] == [b"IEND"] and _PNG_METADATA.isdisjoint(kinds[pixels:])


def _orientation(image: Image.Image) -> int:
    """EXIF orientation that is still to be applied, 1 to 8; 1 is upright."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow has already turned TIFF and reports the turned size
    try:
        if (
            isinstance(image, PngImagePlugin.PngImageFile)
            and image.fp
            and _says_all_before_pixels(image.fp)
        ):
            exif = Image.Image.getexif(image)  # its own would decode the image first
        else:
            exif = image.getexif()
        orientation: int = exif.get(_ORIENTATION, 1)
        return orientation
    except (SyntaxError, struct.error, LookupError):
        return 1  # the metadata is damaged, the image need not be


def _upright_size(image: Image.Image) -> Size:
    turned = _orientation(image) in (5, 6, 7, 8)
    if turned:
        return Size(image.height, image.width)
    return Size(image.width, image.height)


def _upright(image: Image.Image) -> Image.Image:
    return _turned(image, _orientation(image))


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    if orientation in _UPRIGHT:
        return image.transpose(_UPRIGHT[orientation])
    return image


# ---------------------------------------------------------------- colour


def _refuse_wide_values(image: Image.Image, path: Path | str) -> None:
    """Mode I is either 16 bits in a wider type or truly 32 bits; only the pixels
    tell."""
    # one pair: one band
    low, high = (
        cast("tuple[int, int]", image.getextrema()) if image.mode == "I" else (0, 0)
    )
    is_small = 0 < high < 256  # which 16 bits would make all but black
    if low < 0 or high > 65535 or is_small:
        raise ImageError(
            path, f"holds 32-bit values ({low} to {high}). Save it with 8 or 16 bits"
        )


def _to_eight_bit(image: Image.Image, path: Path | str) -> Image.Image:
    """Scales grey of 16 bits to 8 (65535 becomes 255); everything else passes.

    Pillow reads 16-bit colour as 8 bits, but `convert("RGB")` would clip 16-bit grey to
    white.
    """
    if image.mode not in _SIXTEEN_BIT:
        return image
    _refuse_wide_values(image, path)
    import numpy

    wide_HW = numpy.asarray(image).astype(numpy.int64)
    grey = Image.fromarray(((wide_HW * 255 + 32767) // 65535).astype(numpy.uint8))
    if "icc_profile" in image.info:
        grey.info["icc_profile"] = image.info["icc_profile"]
    clear = image.info.get("transparency")
    if clear is None:
        return grey
    grey.putalpha(
        Image.fromarray(numpy.where(wide_HW == clear, 0, 255).astype(numpy.uint8))
    )
    return grey


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colour as L, RGB, CMYK or LAB, and its opacity (L) when the file has one."""
    if image.has_transparency_data:
        if image.mode != "LA":
            image = image.convert("RGBA")
        *bands, alpha = image.split()
        return (bands[0] if len(bands) == 1 else Image.merge("RGB", bands)), alpha
    if image.mode == "1":
        return image.convert("L"), None
    if image.mode not in PROFILE_MODES.values():
        return image.convert("RGB"), None  # palettes, YCbCr, HSV
    return image, None


def _to_srgb(colour: Image.Image, colours: Colours, note: Note) -> Image.Image:
    """Applies the embedded profile; a file without a usable one is taken to be sRGB
    already."""
    if colours.fault:
        note(colours.fault)
    profile, _ = (
        read_profile(colours.profile)
        if colours.profile and not colours.fault
        else (None, "")
    )
    if profile is None and colour.mode == "LAB":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    if profile is None:
        return colour.convert("RGB")
    if colour.mode == "L" and profile_mode(profile) == "RGB":
        colour = colour.convert("RGB")
    try:
        converted = ImageCms.profileToProfile(
            colour, profile, srgb_profile(), outputMode="RGB"
        )
        return cast("Image.Image", converted)  # None only in place
    except ImageCms.PyCMSError as error:
        note(f"its colour profile cannot be applied ({error}): taken as sRGB")
        return colour.convert("RGB")


def _converted(
    image: Image.Image, colours: Colours, path: Path | str, data: bytes | None
) -> tuple[Image.Image, Image.Image | None]:
    """An opened image of other colours than sRGB's as upright 8-bit sRGB, and its
    opacity (L) when it has one. All bits of a file of 16 bits count, if its decoder
    gives them."""
    import numpy

    from toolkit.data.pixels.conversion import to_srgb

    header = header_of(image)
    is_stored = header is not None and header.has_planes  # which Pillow does not turn
    if is_stored:
        orientation = orientation_of(cast("TiffImagePlugin.TiffImageFile", image))
    else:
        orientation = _orientation(image)
    wide_HWP = _sixteen_bits(image, path, data)
    decoded = _decoded(image)
    colour, alpha = _split_alpha(_to_eight_bit(decoded, path))
    if wide_HWP is None:
        values = numpy.asarray(colour if colour.mode == "L" else colour.convert("RGB"))
        return Image.fromarray(
            to_srgb(values.reshape(*values.shape[:2], -1), colours)
        ), alpha
    return _turned(Image.fromarray(to_srgb(wide_HWP, colours)), orientation), alpha


def _sixteen_bits(image: Image.Image, path: Path | str, data: bytes | None) -> Any:
    """The colours [H, W, P] uint16 of an opened file of 16 bits, P 1 or 3, turned as
    `Image.load` turns them; None where its decoder gives 8 bits."""
    import numpy

    if (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and TiffHeader.of(image.tag_v2).has_planes
    ):
        wide_HWP = read_planes(image)
        is_rgb = image.mode in ("RGB", "RGBA")
        return wide_HWP[..., :3] if is_rgb else None
    if isinstance(image, jxl.JxlImageFile):
        values_HWP = image.values() if image.header.bits > 8 else None
        if values_HWP is None:
            return None
        return values_HWP[..., : 1 if image.header.is_grey else 3]
    if image.format == "AVIF":
        bits = _avif_bits(image)
        if bits > 8 and find_spec(jxl.PACKAGE):
            return _avif_of_16_bits(bits, path, data)
        return None
    if image.format == "HEIF":
        if image.info.get("bit_depth", 8) > 8:
            return _heic_of_16_bits(path, data)
        return None
    if image.mode in _SIXTEEN_BIT:
        image.load()
        grey_HW = numpy.asarray(_tiff_undone(image)).astype(numpy.int64)
        return grey_HW.clip(0, 65535).astype(numpy.uint16)[..., None]
    if not _has_wide_rgb(image):
        return None
    # Pillow keeps the high byte of each value; where it is told of the other byte order
    # it keeps the low one.
    with _open(path if data is None else io.BytesIO(data)) as again:
        assert isinstance(again, ImageFile.ImageFile)  # as the first time
        tiles = again.tile
        again.tile = [tile._replace(args=_other_order(tile.args)) for tile in tiles]
        again.load()
        low_HWP = numpy.asarray(again)[..., :3]
    image.load()
    return numpy.asarray(image)[..., :3].astype(numpy.uint16) << 8 | low_HWP


def _has_wide_rgb(image: Image.Image) -> bool:
    """Whether an image that was not decoded is RGB of 16 bits, all of which
    `_sixteen_bits` gets. Of compressed planes Pillow gives the high bytes alone."""
    header = header_of(image)
    if header is not None and header.is_planar:
        return (
            header.has_planes and header.bits[0] == 16 and image.mode in ("RGB", "RGBA")
        )
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    return bool(tiles) and all(_rawmode(tile).endswith(_WIDE_ENDINGS) for tile in tiles)


_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_WIDE_ENDINGS = tuple(
    f"{mode};16{order}" for mode in ("RGB", "RGBA", "RGBX") for order in "BLN"
)


def _rawmode(tile: Any) -> str:
    if isinstance(tile.args, str):
        return tile.args
    return str(tile.args[0])


def _other_order(args: Any) -> Any:
    """The arguments of a decoder, for values whose bytes are the other way round."""
    if isinstance(args, str):
        return args[:-1] + _OTHER_ORDER[args[-1]]
    return (_other_order(args[0]), *args[1:])


def _avif_bits(image: Image.Image) -> int:
    """The bits of a value of an opened, not decoded AVIF."""
    file: IO[bytes] = cast("Any", image).fp
    place = file.tell()
    bits = bits_of_avif(file)
    file.seek(place)
    return bits


def _avif_of_16_bits(bits: int, path: Path | str, data: bytes | None) -> Any:
    """The colours [H, W, P] uint16, not turned upright, of an AVIF of 10 or 12 bits, of
    which Pillow gives 8."""
    import imagecodecs
    import numpy

    try:
        values_HWP = numpy.asarray(
            imagecodecs.avif_decode(Path(path).read_bytes() if data is None else data)
        )
    except imagecodecs.AvifError as error:
        raise OSError(f"broken data stream: {error}") from error
    values_HWP = values_HWP.reshape(*values_HWP.shape[:2], -1)
    colours_HWP = values_HWP[..., : 3 if values_HWP.shape[2] > 2 else 1]
    return _widened(colours_HWP, bits)


def _widened(values_HWP: Any, bits: int) -> Any:
    """Values of so many bits as uint16 of the full range."""
    import numpy

    top = (1 << bits) - 1
    return (
        (values_HWP.astype(numpy.uint32).clip(0, top) * 65535 + top // 2) // top
    ).astype(numpy.uint16)


def _heic_of_16_bits(path: Path | str, data: bytes | None) -> Any:
    """The colours [H, W, 3] uint16 of a HEIC of 10 or 12 bits, which the opener of
    pi-heif cuts to 8."""
    import numpy
    from pi_heif import open_heif

    file = open_heif(
        path if data is None else io.BytesIO(data), convert_hdr_to_8bit=False
    )
    # of pi-heif 1.4 a view, which is valid as long as `file` lives
    values_HWP = numpy.asarray(file[file.primary_index])
    if values_HWP.dtype != numpy.uint16:
        return None
    bits = int(file[file.primary_index].info["bit_depth"])
    return _widened(values_HWP[..., :3] >> (16 - bits), bits)


# ---------------------------------------------------------------- what Pillow does
# otherwise


def _decoded(image: Image.Image) -> Image.Image:
    """An opened image with its pixels, upright."""
    header = header_of(image)
    if header is not None and header.has_planes:
        return _of_planes(cast("TiffImagePlugin.TiffImageFile", image))
    image.load()
    return _upright(_tiff_undone(image, header))


def _tiff_undone(image: Image.Image, header: TiffHeader | None = None) -> Image.Image:
    """A decoded image; grey of a TIFF as 16 bits with 0 as black."""
    header = header or header_of(image)
    if header is not None and header.grey_top:
        return undone(image, header)
    return image


def _of_planes(image: TiffImagePlugin.TiffImageFile) -> Image.Image:
    """The upright image, of 8 bits, of a TIFF whose channels are stored one after the
    other."""
    import numpy

    values_HWP = read_planes(image)
    top = int(numpy.iinfo(values_HWP.dtype).max)
    eight_HWP = ((values_HWP.astype(numpy.uint32) * 255 + top // 2) // top).astype(
        numpy.uint8
    )
    planes = [
        Image.fromarray(numpy.ascontiguousarray(eight_HWP[..., p]))
        for p in range(eight_HWP.shape[2])
    ]
    decoded = _turned(Image.merge(image.mode, planes), orientation_of(image))
    decoded.info = image.info
    return decoded
