"""The one way an image file becomes pixels: targets, references and masks all come through here.

Whatever the file holds (16-bit grey, CMYK, a colour profile, transparency, an EXIF rotation), the
result is an upright 8-bit sRGB image. What cannot become one faithfully is refused by name:
animations, several pages, floating point, truncated or oversized files.

Shape suffixes: H/W height and width in pixels; P red, green, blue, and opacity where the image has it.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, cast

from PIL import Image, ImageCms, ImageColor, PngImagePlugin, TiffImagePlugin

from toolkit.data.types import Flip, Mask, ResizeCrop, Size
from toolkit.files.unreadable import LONGEST, denied, stand_in

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".heic", ".heif", ".bmp", ".tif", ".tiff"}
)
"""File name endings (lower case) that are read as images."""

MAX_PIXELS = 120_000_000
"""Largest image that is read, in pixels: about 480 MB while it is decoded."""

MAX_REFERENCE_ASPECT = 200
"""Largest ratio of the sides of a reference. Source: transformers, image_processing_qwen2_vl.py, `smart_resize`."""

# Pillow's own guard warns from its limit on and refuses at twice that; ours names the file and the remedy.
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

_PROFILE_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK", "Lab": "LAB"}
# What Pillow's decoders are known to raise on damaged files; its documentation promises only OSError.
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
    """What is to be known of an image before its pixels are needed."""

    size: Size
    """After EXIF rotation."""

    alpha: bool
    """Whether it can be transparent anywhere, by its header."""

    notes: tuple[str, ...] = ()
    """What is worth knowing about a file that can be used all the same."""

    verified: bool = False
    """The whole file was read and is good, not its header only."""


def reference_error(size: Size) -> str:
    """Why an image of this size cannot be a reference, or an empty string."""
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
    """The image as upright 8-bit sRGB: mode RGB, transparency composited on `background` (empty: white); with 4
    channels mode RGBA, its transparency kept where no background is given.

    data: the file's bytes, where it is not on disk; `path` is its name in messages. at_least: a JPEG may come at a
    half, a quarter or an eighth of its size, much faster, if both sides keep so many pixels. Raises ImageError, and
    only that, for a file that cannot be used.
    """
    canvas_colour = ImageColor.getrgb(background or "white")[:3]
    with _reading(path, data) as image:
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        image.load()
        eight_bit = _to_eight_bit(_upright(image), path)
        colour, alpha = _split_alpha(eight_bit)
        rgb = _to_srgb(colour, eight_bit.info.get("icc_profile"), note)
        if alpha is not None:
            rgb.putalpha(alpha)
            if channels == 3 or background:
                rgb = _laid_over(rgb, canvas_colour)
        if channels == 4 and rgb.mode == "RGB":
            rgb.putalpha(255)
        return rgb


def over_white(image: Image.Image) -> Image.Image:
    """A copy of the image as mode RGB, its transparency composited on white."""
    if image.has_transparency_data:
        return _laid_over(image.convert("RGBA"), (255, 255, 255))
    return image.convert("RGB")


def _laid_over(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    canvas = Image.new("RGB", image.size, colour)
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def load_alpha(path: Path | str) -> Image.Image:
    """The opacity of an upright image (mode L, 255 is opaque); all opaque when it has no transparency.

    Raises ImageError, and only that, for a file that cannot be used.
    """
    with _reading(path) as image:
        image.load()
        upright = _upright(image)
        _, alpha = _split_alpha(_to_eight_bit(upright, path))
        return alpha or Image.new("L", upright.size, 255)


def open_mask(mask: Mask) -> Image.Image:
    """The image of a mask (mode L), not inverted: colours by their brightness, transparency as black. Raises ImageError
    as `open_image`."""
    return load_alpha(mask.file) if mask.alpha else open_image(mask.file, background="black").convert("L")


def image_size(path: Path | str, data: bytes | None = None) -> Size:
    """Width and height after EXIF rotation. Reads the header only, where the format keeps EXIF there. data: as of
    `open_image`. Raises ImageError for a file that cannot be used."""
    with _reading(path, data) as image:
        return _upright_size(image)


def media_type(path: Path | str) -> str:
    """`image/png` and the like, by what the file holds. Reads the header only. Raises ImageError."""
    with _reading(path) as image:
        return Image.MIME["JPEG" if image.format == "MPO" else str(image.format)]


def inspect_image(path: Path | str) -> ImageInfo:
    """Reads the whole file as cheaply as its format allows. Raises ImageError."""
    with _reading(path) as image:
        size, alpha = _upright_size(image), image.has_transparency_data
        image.draft(None, (1, 1))  # JPEG: every byte is still read, only an eighth of each side computed
        image.load()
        _refuse_wide_values(image, path)
        notes = _profile_notes(image.info.get("icc_profile"))
        if alpha and image.convert("RGBA").getchannel("A").getextrema() == (0, 0):
            notes += (CLEAR,)
        return ImageInfo(size, alpha, notes, verified=True)


def inspect_header(path: Path | str) -> ImageInfo:
    """What the header says, some 50 times as fast; where it is not enough, as `inspect_image`. Raises ImageError."""
    with _reading(path) as image:
        if _header_is_enough(image):
            notes = _profile_notes(image.info.get("icc_profile"))
            return ImageInfo(_upright_size(image), image.has_transparency_data, notes)
    return inspect_image(path)


def resize_cover_crop(image: Image.Image, crop: ResizeCrop) -> Image.Image:
    """The image as its bucket wants it: bicubic to `crop.scaled`, then the bucket cut out. Pillow weights the colours
    of RGBA by their opacity, so that transparent pixels do not bleed into others."""
    box = (crop.left, crop.top, crop.left + crop.bucket.width, crop.top + crop.bucket.height)
    return image.resize(crop.scaled, Image.Resampling.BICUBIC).crop(box)


def flip_image(image: Image.Image, flip: Flip) -> Image.Image:
    """The image with its sides exchanged; without a flip the same object."""
    if flip.x:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if flip.y else image


def resize(image: Image.Image, size: Size) -> Image.Image:
    """A reference at exactly this size, by Lanczos as diffusers' `VaeImageProcessor.resize` does."""
    return image.resize(size, Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> Tensor:
    """Pixels [P, H, W] float32 in [-1, 1] of an RGB or RGBA image; as diffusers' `VaeImageProcessor.preprocess`."""
    import numpy
    import torch

    unit_HWP = numpy.array(image, dtype=numpy.float32) / 255.0
    return 2.0 * torch.from_numpy(unit_HWP.transpose(2, 0, 1).copy()) - 1.0


# ---------------------------------------------------------------- reading


@contextmanager
def _reading(path: Path | str, data: bytes | None = None) -> Iterator[Image.Image]:
    """The opened, not yet decoded file; every way in which it can be unusable becomes an ImageError."""
    try:
        with _open(path if data is None else io.BytesIO(data)) as image:
            _refuse_unusable(image, path)
            yield image
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        if reason := _stands_in(path, data):
            raise ImageError(path, reason) from error
        hint = "" if find_spec("pi_heif") else " (HEIC needs the package 'pi-heif': pip install pi-heif)"
        what = "is not a JPEG, PNG, WebP, AVIF, HEIC, BMP or TIFF image, or is damaged"
        raise ImageError(path, f"{what}{hint}") from error
    except FileNotFoundError as error:
        raise ImageError(path, "does not exist") from error
    except Image.DecompressionBombError as error:
        raise ImageError(path, f"has more than the {MAX_PIXELS // 10**6} megapixels allowed") from error
    except _DECODE_ERRORS as error:
        if isinstance(error, PermissionError):
            cause = denied(Path(path))
            raise ImageError(path, f"cannot be read: {cause.what}. {cause.remedy}") from error
        if isinstance(error, OSError) and error.errno:  # of the system; those of the decoders have no number
            raise ImageError(path, f"cannot be read: {error.strerror}") from error
        raise ImageError(path, f"cannot be read ({error}): truncated or damaged") from error


def _stands_in(path: Path | str, data: bytes | None) -> str:
    """What an unknown file is where it only stands in the place of an image, with the remedy; else empty."""
    with suppress(OSError):  # then the other error is told
        contents = data
        if contents is None:
            with open(path, "rb") as file:
                contents = file.read(LONGEST + 1)
        if cause := stand_in(contents):
            return f"{cause.what.replace('it is', 'is', 1)}. {cause.remedy}"
    return ""


def _open(file: Path | str | IO[bytes]) -> Image.Image:
    """Photographs of iPhones (HEIC) are read from the first unknown file on, whatever it is named: their decoder takes
    time to be imported."""
    try:
        return Image.open(file, formats=(*_FORMATS, *(("HEIF",) if "HEIF" in Image.OPEN else ())))
    except Image.UnidentifiedImageError:
        if "HEIF" in Image.OPEN or not find_spec("pi_heif"):
            raise
    from pi_heif import register_heif_opener

    register_heif_opener()
    return Image.open(file, formats=("HEIF",))


def _refuse_unusable(image: Image.Image, path: Path | str) -> None:
    """Raises ImageError for what the header alone rules out."""
    if image.width * image.height > MAX_PIXELS:
        megapixels = image.width * image.height / 1e6
        limit = f"at most {MAX_PIXELS // 10**6} are allowed"
        raise ImageError(path, f"has {megapixels:.0f} megapixels, {limit}. Make it smaller")
    # A JPEG with several images (MPO) is a photograph with previews, as HEIC may be: its first image is meant.
    frames = 1 if image.format in ("JPEG", "MPO", "HEIF") else getattr(image, "n_frames", 1)
    if frames > 1:
        kind = "pages" if image.format == "TIFF" else "frames"
        state = "holds" if image.format == "TIFF" else "is animated:"
        raise ImageError(path, f"{state} {frames} {kind}. Save one of them as PNG")
    if image.format == "GIF":
        raise ImageError(path, "is a GIF, which is not supported. Save it as PNG")
    if image.mode == "F":
        raise ImageError(path, "holds floating-point pixels, whose range is unknown. Save it with 8 or 16 bits")


def _header_is_enough(image: Image.Image) -> bool:
    """Whether the header of an image that was not decoded tells all that is to be known before its pixels are needed,
    and its file is as long as its format says.

    Not of other formats, WebP with transparency and PNG with a colour profile (which may be all clear).
    """
    file: IO[bytes] | None = getattr(image, "fp", None)
    usual = image.format in ("JPEG", "MPO") or (image.format == "WEBP" and image.mode == "RGB")
    if file is None or not (usual or (image.format == "PNG" and "icc_profile" not in image.info)):
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
    place, length, at, kinds = raw.tell(), raw.seek(0, os.SEEK_END), 8, list[bytes]()
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
        if isinstance(image, PngImagePlugin.PngImageFile) and image.fp and _says_all_before_pixels(image.fp):
            return Image.Image.getexif(image).get(_ORIENTATION, 1)  # its own would decode the image first
        return image.getexif().get(_ORIENTATION, 1)
    except (SyntaxError, struct.error, LookupError):
        return 1  # the metadata is damaged, the image need not be


def _upright_size(image: Image.Image) -> Size:
    turned = _orientation(image) in (5, 6, 7, 8)
    return Size(image.height, image.width) if turned else Size(image.width, image.height)


def _upright(image: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


# ---------------------------------------------------------------- colour


def _refuse_wide_values(image: Image.Image, path: Path | str) -> None:
    """Mode I is either 16 bits in a wider type or truly 32 bits; only the pixels tell."""
    low, high = cast("tuple[int, int]", image.getextrema()) if image.mode == "I" else (0, 0)  # one pair: one band
    if low < 0 or high > 65535:
        raise ImageError(path, f"holds 32-bit values ({low} to {high}). Save it with 8 or 16 bits")


def _to_eight_bit(image: Image.Image, path: Path | str) -> Image.Image:
    """Scales grey of 16 bits to 8 (65535 becomes 255); everything else passes.

    Pillow reads 16-bit colour as 8 bits, but `convert("RGB")` would clip 16-bit grey to white.
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
    grey.putalpha(Image.fromarray(numpy.where(wide_HW == clear, 0, 255).astype(numpy.uint8)))
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
    if image.mode not in _PROFILE_MODES.values():
        return image.convert("RGB"), None  # palettes, YCbCr, HSV
    return image, None


def _to_srgb(colour: Image.Image, profile_bytes: bytes | None, note: Note) -> Image.Image:
    """Applies the embedded profile; a file without a usable one is taken to be sRGB already."""
    profile = _read_profile(profile_bytes, note) if profile_bytes else None
    if profile is None and colour.mode == "LAB":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    if profile is None:
        return colour.convert("RGB")
    mode = _profile_mode(profile)
    if colour.mode == "L" and mode == "RGB":
        colour = colour.convert("RGB")
    if colour.mode != mode:
        note(f"its colour profile is for {mode}, its pixels are {colour.mode}: taken as sRGB")
        return colour.convert("RGB")
    try:
        converted = ImageCms.profileToProfile(colour, profile, _srgb(), outputMode="RGB")
        return cast("Image.Image", converted)  # None only in place
    except ImageCms.PyCMSError as error:
        note(f"its colour profile cannot be applied ({error}): taken as sRGB")
        return colour.convert("RGB")


def _read_profile(profile_bytes: bytes, note: Note) -> ImageCms.ImageCmsProfile | None:
    """The embedded profile, or None (with a note) when it is damaged or of a kind no image mode has."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(profile_bytes))
    except OSError:
        note("its colour profile is damaged: taken as sRGB")
        return None
    if _profile_mode(profile) is None:
        note("its colour profile is of an unknown kind: taken as sRGB")
        return None
    return profile


def _profile_mode(profile: ImageCms.ImageCmsProfile) -> str | None:
    return _PROFILE_MODES.get(profile.profile.xcolor_space.strip())


@lru_cache(maxsize=16)
def _profile_notes(profile_bytes: bytes | None) -> tuple[str, ...]:
    """What is wrong with an embedded profile; most images of a dataset have the same."""
    notes: list[str] = []
    if profile_bytes:
        _read_profile(profile_bytes, notes.append)
    return tuple(notes)


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
