"""The one way an image file becomes pixels: targets, references and masks all come
through here.

Whatever the file holds (16-bit grey, CMYK, a colour profile, transparency, an EXIF
rotation), the result is an upright 8-bit sRGB image. A file that cannot become one
faithfully is refused with the reason: animations, several pages, truncated or oversized
files, and kinds that are not read (`unread`). `colours` says which colours a file
holds, `tiff` knows the files that Pillow reads wrongly.

Shape suffixes: H/W height and width in pixels; P red, green, blue, and opacity where
the image has it.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

from PIL import (
    Image,
    ImageCms,
    ImageColor,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
)

from toolkit.contracts.data import Mask, ResizeCrop, Size
from toolkit.data.pixels.colours import (
    PROFILE_MODES,
    Colours,
    colours_of,
    profile_mode,
    read_profile,
    srgb_profile,
)
from toolkit.data.pixels.tiff import pages_of, refuse_misread
from toolkit.data.pixels.unread import Unread, stranger, unread_jpeg, unread_kind
from toolkit.errors import install_command
from toolkit.files.parquet import HEIC_BRANDS
from toolkit.files.unreadable import denied, in_its_place

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"),
        *(".avif", ".heic", ".heif", ".hif", ".jxl", ".jpe", ".mpo", ".jpg_large"),
    }
)
"""File name endings (lower case) of images: cameras write .hif and .mpo. JPEG XL (.jxl) is refused."""

MAX_PIXELS = 120_000_000
"""Largest image that is read, in pixels: about 480 MB while it is decoded."""

MAX_REFERENCE_ASPECT = 200
"""Largest ratio of the sides of a reference. Source: transformers,
image_processing_qwen2_vl.py, `smart_resize`."""

# Pillow's own guard warns from its limit on and refuses at twice that; ours names the
# file and the remedy.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")
_SIXTEEN_BIT = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
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
    AssertionError,
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
    return (
        f"is {size.width} x {size.height}: "
        f"as a control image at most {MAX_REFERENCE_ASPECT} times as long as wide. Crop it"
    )


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
        colour, alpha = _split_alpha(_to_eight_bit(_decoded(image)))
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
        _, alpha = _split_alpha(_to_eight_bit(upright))
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
    """The facts of an image after its whole file was read, so that a damaged one is
    noticed: a PNG without transparency by its checksums, a JPEG decoded at an eighth of
    its size, any other decoded. Raises ImageError."""
    with _reading(path) as image:
        _refuse_wrong_checksums(image)
        info = _info(image, image.has_transparency_data)
        is_decoded = not getattr(image, "fp", None)
        if image.format == "PNG" and not (info.alpha or is_decoded):
            return info._replace(verified=True)
        if image.format == "JPEG" and _JPEG_END not in cast("Any", image).fp.read():
            raise OSError("it has no end")
        # JPEG: every byte is still read, but only an eighth of each side is computed.
        image.draft(None, (1, 1))
        decoded = _decoded(image)
        opacity = decoded.convert("RGBA").getchannel("A") if info.alpha else None
        if opacity and opacity.getextrema() == (0, 0):
            info = info._replace(notes=(*info.notes, CLEAR))
        return info._replace(verified=True)


def inspect_header(path: Path | str) -> ImageInfo:
    """The facts from the header only, faster; where the header is not enough, the
    result of `inspect_image`. Raises ImageError."""
    with _reading(path) as image:
        if _header_is_enough(image):
            return _info(image, image.has_transparency_data)
    return inspect_image(path)


def _info(image: Image.Image, alpha: bool) -> ImageInfo:
    """The facts in the header of an image that was not decoded."""
    colours = colours_of(image)
    return ImageInfo(
        _upright_size(image),
        alpha,
        notes=(colours.fault,) if colours.fault else (),
        colours=colours.name if colours.changes else "",
        reading=_reading_of(image, colours),
    )


def _reading_of(image: Image.Image, colours: Colours) -> str:
    return colours.reading or "clear 1" * bool(_top_of_clear_grey(image))


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


def flip_image(image: Image.Image, flip: bool) -> Image.Image:
    """The image mirrored left to right, a new object; without `flip` the same object.

    >>> image = Image.new("L", (2, 1))
    >>> image.putpixel((0, 0), 255)
    >>> flip_image(image, flip=True).getpixel((1, 0))
    255
    """
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image


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
        raise ImageError(path, _why_unknown(path, data)) from error
    except Unread as error:
        raise ImageError(path, error.reason) from error
    except FileNotFoundError as error:
        is_link = os.path.islink(path)
        what = f"is a link to {os.readlink(path)!r}, which" if is_link else ""
        raise ImageError(path, f"{what} does not exist".lstrip()) from error
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
        kind = unread_jpeg(_beginning(path, data))
        told = f"cannot be read ({error}): " if str(error) else "is "
        damage = f"{told}truncated or damaged"
        raise ImageError(path, Unread(kind).reason if kind else damage) from error


def _open(file: Path | str | IO[bytes]) -> Image.Image:
    """Photographs of iPhones (HEIC) are read from the first unknown file on, whatever it
    is named: their decoder takes time to be imported."""
    has_heif = "HEIF" in Image.OPEN
    try:
        image = Image.open(file, formats=(*_FORMATS, *(("HEIF",) if has_heif else ())))
    except UnidentifiedImageError:
        if has_heif or not find_spec("pi_heif"):
            raise
        from pi_heif import register_heif_opener

        register_heif_opener()
        return Image.open(file, formats=("HEIF",))
    top = _top_of_clear_grey(image)
    if top and image.info["transparency"] <= top:
        image.info["transparency"] *= 255 // top
    return image


def _top_of_clear_grey(image: Image.Image) -> int:
    """The largest value of an opened, not decoded PNG of 2 or 4 bits of grey, one of
    which is clear; 0 for any other. Pillow scales the pixels to 8 bits, and leaves
    the clear value as it was."""
    is_clear = isinstance(image.info.get("transparency"), int)
    return {"L;2": 3, "L;4": 15}.get(_png_mode(image), 0) if is_clear else 0


def _png_mode(image: Image.Image) -> str:
    """How an opened, not decoded PNG has its pixels, in Pillow's words: `RGB;16B`.
    Empty for any other file."""
    tiles = cast("Any", image).tile if image.format == "PNG" else ()
    args = tiles[0].args if tiles else ""
    return str(args if isinstance(args, str) else args[0])


def _why_unknown(path: Path | str, data: bytes | None) -> str:
    """Why no decoder takes a file: something else is in its place, it is of a kind that
    is not read, its decoder is not installed, or it is damaged."""
    beginning = _beginning(path, data)
    instead = in_its_place(beginning)
    if instead:
        return instead
    if not beginning.strip(b"\0"):
        state = "begins with zeros" if beginning else "is empty"
        return f"{state}, as after a broken download. Copy or download it again"
    kind = unread_kind(beginning)
    if kind:
        return Unread(kind).reason
    other, remedy = stranger(beginning)
    if other:
        return f"is {other}. {remedy}"
    what = "is not a JPEG, PNG, WebP, AVIF, HEIC, BMP or TIFF image, or is damaged"
    is_heic = beginning[4:8] == b"ftyp" and beginning[8:12] in HEIC_BRANDS
    if is_heic and not find_spec("pi_heif"):
        what += f" (HEIC needs the package 'pi-heif': {install_command('pi-heif')})"
    return what


def _beginning(path: Path | str, data: bytes | None) -> bytes:
    """The first bytes of a file; none where it cannot be read."""
    try:
        with Path(path).open("rb") if data is None else io.BytesIO(data) as file:
            return file.read(1 << 16)
    except OSError:
        return b""


def _refuse_unusable(image: Image.Image, path: Path | str) -> None:
    """Raises ImageError for images that cannot be used by their header alone."""
    if image.width * image.height > MAX_PIXELS:
        megapixels = image.width * image.height / 1e6
        raise ImageError(
            path,
            f"has {megapixels:.0f} megapixels, "
            f"at most {MAX_PIXELS // 10**6} are allowed. Make it smaller",
        )
    # A JPEG with several images (MPO) is a photograph with previews, as HEIC may be:
    # its first image is meant.
    is_tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
    frames = pages_of(image) if is_tiff else getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in ("JPEG", "MPO", "HEIF"):
        state = f"holds {frames} pages" if is_tiff else f"is animated: {frames} frames"
        raise ImageError(path, f"{state}. Save one of them as PNG")
    if image.format == "GIF":
        raise ImageError(path, "is a GIF, which is not supported. Save it as PNG")
    if is_tiff:
        refuse_misread(image)
    own_chunks = getattr(image, "private_chunks", ())
    if any(kind == b"CgBI" for kind, *_ in own_chunks):
        raise Unread("a PNG of an iPhone's app (CgBI)")
    if _png_mode(image) == "RGB;16B" and "transparency" in image.info:
        raise Unread("a PNG of 16 bits with a clear colour (tRNS)")


_JPEG_END = b"\xff\xd9"
"""The marker EOI. In coded pixels a zero follows each 255 (ITU-T T.81, B.1.1.5)."""

_ENDS = {
    "JPEG": _JPEG_END,
    "MPO": _JPEG_END,
    "PNG": b"IEND\xaeB`\x82",
}
"""Format -> the last bytes of a whole file."""


def _header_is_enough(image: Image.Image) -> bool:
    """Whether the header of an image that was not decoded tells all that is to be known
    before its pixels are needed, and its file is as long as its format says.

    Not of other formats, WebP with transparency and PNG with a colour profile (which
    may be all clear).
    """
    file: IO[bytes] | None = getattr(image, "fp", None)
    if file is None or (image.format == "PNG" and "icc_profile" in image.info):
        return False
    place = file.tell()
    if image.format == "WEBP" and image.mode == "RGB":
        file.seek(4)
        whole = int.from_bytes(file.read(4), "little") + 8 == file.seek(0, os.SEEK_END)
    else:
        end = _ENDS.get(str(image.format), b"")
        file.seek(-len(end), os.SEEK_END)
        whole = bool(end) and file.read() == end
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
    if _orientation(image) in (5, 6, 7, 8):
        return Size(image.height, image.width)
    return Size(image.width, image.height)


def _decoded(image: Image.Image) -> Image.Image:
    """An opened image with its pixels, upright."""
    _refuse_wrong_checksums(image)
    image.load()
    return _turned(image, _orientation(image))


def _refuse_wrong_checksums(image: Image.Image) -> None:
    """Raises OSError or SyntaxError for an opened, not decoded PNG that is damaged:
    Pillow 13.0 decodes some as black rows."""
    file: IO[bytes] | None = getattr(image, "fp", None)
    if image.format == "PNG" and file:
        place = file.tell()
        file.seek(8)
        PngImagePlugin.ChunkStream(file).verify()
        file.seek(place)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    if orientation in _UPRIGHT:
        return image.transpose(_UPRIGHT[orientation])
    return image


# ---------------------------------------------------------------- colour


def _to_eight_bit(image: Image.Image) -> Image.Image:
    """Scales grey of 16 bits to 8 (65535 becomes 255); everything else passes.

    Pillow reads 16-bit colour as 8 bits, but `convert("RGB")` would clip 16-bit grey to
    white.
    """
    if image.mode not in _SIXTEEN_BIT:
        return image
    import numpy

    wide_HW = numpy.asarray(image).astype(numpy.int64)
    grey = Image.fromarray(((wide_HW * 255 + 32767) // 65535).astype(numpy.uint8))
    if "icc_profile" in image.info:
        grey.info["icc_profile"] = image.info["icc_profile"]
    clear = image.info.get("transparency")
    if clear is not None:
        opacity_HW = numpy.where(wide_HW == clear, 0, 255).astype(numpy.uint8)
        grey.putalpha(Image.fromarray(opacity_HW))
    return grey


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colour as L, RGB or CMYK, and its opacity (L) when the file has one."""
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
    profile = None
    if colours.profile and not colours.fault:
        profile, _ = read_profile(colours.profile)
    if colours.gamma:
        return colour.convert("RGB").point(_levels_of(colours.gamma) * 3)
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


def _levels_of(gamma: float) -> list[int]:
    """The level of sRGB (IEC 61966-2-1) of each value whose light is value^gamma."""
    lights = [(value / 255) ** gamma for value in range(256)]
    return [
        round(
            255
            * (
                light * 12.92
                if light <= 0.0031308
                else 1.055 * light ** (1 / 2.4) - 0.055
            )
        )
        for light in lights
    ]
