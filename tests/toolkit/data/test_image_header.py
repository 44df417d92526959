"""What is said of an image after a glance at it is what its decoder says."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from toolkit.data.image_header import picture_size, read_header
from toolkit.data.images import ImageError, inspect_image

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
    "moving.png": saved(noise(), "PNG", save_all=True, append_images=[noise("L").convert("RGB")]),
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


@pytest.fixture
def look(tmp_path: Path) -> Callable:
    """What the glance and the decoder say of these bytes; the decoder's None is a refusal."""

    def both(contents: bytes):
        path = tmp_path / "picture"
        path.write_bytes(contents)
        try:
            decoded = inspect_image(path)._replace(verified=False)
        except ImageError:
            decoded = None
        return read_header(str(path), len(contents)), decoded

    return both


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_pictures_are_known_by_their_header(look, name: str) -> None:
    seen, decoded = look(ORDINARY[name])
    assert seen is not None and seen == decoded


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_ones_are_left_to_the_decoder(look, name: str) -> None:
    assert look(UNUSUAL[name])[0] is None


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("name", ORDINARY)
def test_what_is_cut_off_is_never_vouched_for(look, name: str, share: float) -> None:
    contents = ORDINARY[name]
    assert look(contents[: int(share * len(contents))])[0] is None


def test_a_changed_header_is_never_taken_for_another_picture(look) -> None:
    """Each byte of the headers in turn: the glance agrees with the decoder, or leaves the file to it.

    Where the decoder refuses a file for what is beyond its size, it does so when the image is encoded.
    """
    agreed = 0
    for name in ("turned_6.jpg", "clear_palette.png", "colour.webp"):
        contents = ORDINARY[name]
        for place in range(0, min(len(contents), 240)):
            changed = bytearray(contents)
            changed[place] ^= 0x41
            seen, decoded = look(bytes(changed))
            if seen and decoded:
                assert seen == decoded, (name, place)
                agreed += 1
    assert agreed > 100


def test_the_size_in_a_shard_needs_no_decoder_where_the_header_tells_it(monkeypatch) -> None:
    monkeypatch.setattr("toolkit.data.image_header.image_size", lambda *_: pytest.fail("decoded"))
    assert {picture_size(name, ORDINARY[name]) for name in ("colour.png", "colour.jpg", "colour.webp")} == {(61, 40)}


def test_sizes_beyond_the_limit_are_left_to_the_decoder(look, monkeypatch) -> None:
    monkeypatch.setattr("toolkit.data.image_header.MAX_PIXELS", 61 * 40 - 1)
    assert look(ORDINARY["colour.png"])[0] is None


def test_the_size_of_every_picture_is_known(tmp_path: Path) -> None:
    for name, contents in {**ORDINARY, **UNUSUAL}.items():
        path = tmp_path / name
        path.write_bytes(contents)
        try:
            wanted = inspect_image(path).size
        except ImageError:
            for data in (None, contents):
                with pytest.raises(ImageError):
                    picture_size(path, data)
        else:
            assert picture_size(path) == picture_size("nowhere", contents) == wanted, name
    with pytest.raises(ImageError, match="does not exist"):
        picture_size(tmp_path / "nowhere.png")
