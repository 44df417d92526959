"""What the header says of an image is what its decoder says."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngInfo

from tests.toolkit.data.pixels.test_colours import chunk
from toolkit.data.pixels.images import (
    ImageError,
    ImageInfo,
    image_size,
    inspect_header,
    inspect_image,
    open_image,
)

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(mode: str = "RGB", size: tuple[int, int] = (61, 40)) -> Image.Image:
    return Image.effect_noise(size, 50).convert(mode)


def saved(image: Image.Image, form: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def text(**entries: str) -> PngInfo:
    info = PngInfo()
    for key, value in entries.items():
        info.add_text(key, value)
    return info


def xmp_rotation() -> PngInfo:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    return info


ORDINARY = {
    "grey.jpg": saved(noise("L"), "JPEG"),
    "colour.jpg": saved(noise(), "JPEG"),
    "print.jpg": saved(noise("CMYK"), "JPEG"),
    "progressive.jpg": saved(noise(), "JPEG", progressive=True),
    "photo.jpg": saved(noise(), "JPEG", exif=turned(1), icc_profile=SRGB),
    "bad_profile.jpg": saved(noise(), "JPEG", icc_profile=b"no profile"),
    **{f"turned_{n}.jpg": saved(noise(), "JPEG", exif=turned(n)) for n in range(1, 9)},
    "grey.png": saved(noise("L"), "PNG"),
    "bits.png": saved(noise("1"), "PNG"),
    "colour.png": saved(noise(), "PNG"),
    "alpha.png": saved(noise("RGBA"), "PNG"),
    "grey_alpha.png": saved(noise("LA"), "PNG"),
    "palette.png": saved(noise("P"), "PNG"),
    "clear_palette.png": saved(noise("P"), "PNG", transparency=0),
    "clear_colour.png": saved(noise(), "PNG", transparency=(1, 2, 3)),
    "deep.png": saved(Image.new("I;16", (61, 40), 40_000), "PNG"),
    "said.png": saved(noise(), "PNG", pnginfo=text(parameters="a prompt")),
    "colour.webp": saved(noise(), "WEBP"),
}
UNUSUAL = {
    "turned.png": saved(noise(), "PNG", exif=turned(6)),
    "xmp.png": saved(noise(), "PNG", pnginfo=xmp_rotation()),
    "profile.png": saved(noise(), "PNG", icc_profile=SRGB),
    "moving.png": saved(
        noise(), "PNG", save_all=True, append_images=[noise("L").convert("RGB")]
    ),
    "xmp.jpg": saved(noise(), "JPEG", xmp=b'<x tiff:Orientation="6"/>'),
    "profile_in_parts.jpg": saved(noise(), "JPEG", icc_profile=b"x" * 70_000),
    "alpha.webp": saved(Image.new("RGBA", (61, 40), (9, 9, 9, 9)), "WEBP"),
    "lossless.webp": saved(noise(), "WEBP", lossless=True),
    "turned.webp": saved(noise(), "WEBP", exif=turned(6)),
    "picture.bmp": saved(noise(), "BMP"),
    "picture.tif": saved(noise(), "TIFF"),
    "picture.gif": saved(noise("P"), "GIF"),
    "nothing.jpg": b"",
    "text.png": b"no picture at all",
}


READ_WHOLE = ("picture.bmp", "picture.tif", "alpha.webp", "profile.png")


def seen(inspect: Callable[[Path], ImageInfo], path: Path) -> tuple[Any, ...] | str:
    """What is said of a file, whether it was read whole or not; or the error."""
    try:
        return inspect(path)[:3]
    except ImageError as error:
        return error.reason


def late_metadata() -> bytes:
    """A PNG that says behind its pixels that it is turned."""
    said = turned(6).tobytes()[6:]
    whole = ORDINARY["colour.png"]
    return whole[:-12] + chunk(b"eXIf", said) + whole[-12:]


@pytest.mark.parametrize("name", [*ORDINARY, *UNUSUAL, "late.png"])
def test_the_header_says_what_the_decoder_says(tmp_path: Path, name: str) -> None:
    contents = {**ORDINARY, **UNUSUAL, "late.png": late_metadata()}[name]
    path = tmp_path / name
    path.write_bytes(contents)
    wanted = seen(inspect_image, path)
    assert seen(inspect_header, path) == wanted
    if isinstance(wanted, tuple):
        assert (
            image_size(path)
            == image_size("nowhere", contents)
            == wanted[0]
            == open_image(path).size
        )
        assert inspect_header(path).verified == (name in READ_WHOLE)
    for share in (0.0, 0.1, 0.5, 0.9, 0.97):
        path.write_bytes(contents[: int(share * len(contents))])
        assert seen(inspect_header, path) == seen(inspect_image, path)


@pytest.mark.parametrize(
    "name", ["colour.png", "alpha.png", "colour.jpg", "turned_6.jpg", "colour.webp"]
)
def test_sizes_come_without_decoding(tmp_path: Path, monkeypatch, name: str) -> None:
    (tmp_path / name).write_bytes(ORDINARY[name])
    monkeypatch.setattr(ImageFile, "load", lambda _: pytest.fail("decoded"))
    wanted = (40, 61) if name == "turned_6.jpg" else (61, 40)
    assert (
        inspect_header(tmp_path / name).size
        == image_size("nowhere", ORDINARY[name])
        == wanted
    )


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow says what it finds odd
def test_a_changed_header_is_never_taken_for_another_image(tmp_path: Path) -> None:
    """Each byte of the headers in turn: the header agrees with the decoder.

    Where the decoder refuses a file for what is beyond its size, it does so when the
    image is encoded.
    """
    path = tmp_path / "image"
    agreed = 0
    for name in ("turned_6.jpg", "clear_palette.png", "colour.webp"):
        for place in range(0, min(len(ORDINARY[name]), 240), 4):
            changed = bytearray(ORDINARY[name])
            changed[place] ^= 0x41
            path.write_bytes(changed)
            header, decoded = seen(inspect_header, path), seen(inspect_image, path)
            if isinstance(decoded, tuple):
                assert header == decoded, (name, place)
                agreed += 1
    assert agreed > 25
