"""Every image in these tests is a real file, written by Pillow (or by hand where Pillow
cannot)."""

import os
import re
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngInfo

from tests.conftest import TURNED_HEIC
from tests.toolkit.data.pixels.test_colours import chunk
from toolkit.contracts.data import ResizeCrop, Size
from toolkit.data.pixels import images
from toolkit.data.pixels.images import (
    ImageError,
    ImageInfo,
    image_size,
    inspect_header,
    inspect_image,
    open_image,
    resize,
    resize_cover_crop,
    to_tensor,
)
from toolkit.errors import install_command

PHOTOS = Path("config/examples/photos")
RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)


def check_image(path: Path) -> str | None:
    """Why the scan refuses this file, or None."""
    try:
        images.inspect_image(path)
    except ImageError as error:
        return error.reason
    return None


def quarters() -> Image.Image:
    """48 x 32: red and green above, blue and grey below; no rotation of it looks like
    another."""
    image = Image.new("RGB", (48, 32))
    for colour, place in (
        (RED, (0, 0)),
        (GREEN, (24, 0)),
        (BLUE, (0, 16)),
        (GREY, (24, 16)),
    ):
        image.paste(colour, (*place, place[0] + 24, place[1] + 16))
    return image


def noise(width: int = 200, height: int = 160) -> Image.Image:
    values = numpy.random.default_rng(0).integers(
        0, 256, (height, width, 3), dtype=numpy.uint8
    )
    return Image.fromarray(values)


def write_png(
    path: Path,
    width: int,
    height: int,
    depth: int,
    colour_type: int,
    rows: bytes,
    extra=b"",
) -> None:
    """A PNG of any depth; `rows` holds the filter bytes too."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = (
        chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


# ---------------------------------------------------------------- EXIF


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_exactly_once(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    undo = {
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
    }
    undo |= {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180}
    undo |= {4: Image.Transpose.FLIP_TOP_BOTTOM, 8: Image.Transpose.ROTATE_270}
    stored = quarters() if orientation == 1 else quarters().transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored.save(
        path,
        exif=exif,
        **({"lossless": True} if suffix == "webp" else {"quality": 100}),
    )

    image = open_image(path)
    assert image_size(path) == image.size == (48, 32)
    assert check_image(path) is None
    for place, colour in (
        ((8, 8), RED),
        ((40, 8), GREEN),
        ((8, 24), BLUE),
        ((40, 24), GREY),
    ):
        assert numpy.abs(numpy.subtract(image.getpixel(place), colour)).max() <= 4


def test_what_is_odd_and_usable_is_read(tmp_path: Path) -> None:
    """Damaged EXIF, a photograph with a preview, names."""
    odd_exif = {"exif": b"Exif\0\0garbage that is not a TIFF header"}
    pages = {"save_all": True, "append_images": [quarters().resize((8, 8))]}
    for name, options in (
        ("exif.jpg", odd_exif),
        ("previews.jpg", {"format": "MPO", **pages}),
        *((name, {}) for name in ("ü [x] 🙂.png", "e\u0301.png", " a .png")),
    ):
        quarters().save(tmp_path / name, **options)
        assert check_image(tmp_path / name) is None, name
        found = open_image(tmp_path / name)
        assert found.size == image_size(tmp_path / name) == (48, 32), name
    with Image.open(tmp_path / "previews.jpg") as image:
        assert image.n_frames == 2


# ---------------------------------------------------------------- depth, transparency,
# colour


def of_array(values: list[list[float]], dtype: str) -> Image.Image:
    return Image.fromarray(numpy.array(values, dtype=dtype))


def of_pixels(
    mode: str, *pixels: object, palette: list[int] | None = None
) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    if palette:
        image.putpalette(palette)
    image.putdata(pixels)
    return image


def wide_png(
    path: Path, colour_type: int, *values: int, width: int = 1, extra: bytes = b""
) -> None:
    write_png(
        path,
        width,
        1,
        16,
        colour_type,
        b"\0" + struct.pack(f">{len(values)}H", *values),
        extra,
    )


def few_bits(path: Path, bits: int, row: bytes, clear: int) -> None:
    """A row of grey of so many bits, of which one value is clear."""
    extra = chunk(b"tRNS", struct.pack(">H", clear))
    write_png(path, 8 // bits, 1, bits, 0, b"\0" + row, extra)


def gamma_one_profile() -> bytes:
    """An RGB profile with sRGB's primaries and linear light: the profile bytes of sRGB,
    its curves replaced."""
    profile = bytearray(
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    count = struct.unpack_from(">I", profile, 128)[0]
    for index in range(count):
        name, offset = struct.unpack_from(">4sI", profile, 132 + 12 * index)
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            # a curve of 0 entries is the identity
            profile[offset : offset + 12] = b"curv" + bytes(8)
    return bytes(profile)


LINEAR = gamma_one_profile()
"""sRGB encodes linear 128/255 as 1.055 * 0.502 ** (1 / 2.4) - 0.055 = 0.7367, times 255
= 188."""

WHITE, BLACK, HALF, LIT = (255, 255, 255), (0, 0, 0), (127, 127, 127), (188, 188, 188)
RED_AND_BLUE = of_pixels("P", 0, 1, palette=[255, 0, 0, 0, 0, 255])
SHEER = of_pixels("RGBA", (255, 0, 0, 0), (0, 0, 0, 128), (0, 0, 255, 255))
EXACT = {"lossless": True, "exact": True}
SIXTEEN = of_array([[0, 128, 129, 32767, 65535]], "uint16")
SIXTEEN_SEEN = [(value,) * 3 for value in (0, 0, 1, 127, 255)]

PIXELS = {
    "16-bit grey.png": (SIXTEEN, {}, SIXTEEN_SEEN),
    "16-bit grey.tif": (SIXTEEN, {}, SIXTEEN_SEEN),
    "big-endian.tif": (Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 32767, 65535)), {}, [HALF, WHITE]),
    "16-bit colour.png": (lambda path: wide_png(path, 2, 32767, 32767, 32767), {}, [HALF]),
    "16-bit rgba.png": (lambda path: wide_png(path, 6, 32767, 32767, 32767, 65535), {}, [HALF]),
    "16-bit grey and alpha.png": (lambda path: wide_png(path, 4, 32767, 65535), {}, [HALF]),
    "clear value of 2 bits, on red.png": (
        lambda path: few_bits(path, 2, b"\x1b", 1), {}, [BLACK, RED, (170,) * 3, WHITE],
    ),
    "clear black of 2 bits, on red.png": (lambda path: few_bits(path, 2, b"\x1b", 0), {}, [RED, (85,) * 3]),
    "clear value of 4 bits, on red.png": (lambda path: few_bits(path, 4, b"\x1e", 14), {}, [(17,) * 3, RED]),
    "rgba.png": (SHEER, EXACT, [WHITE, HALF, BLUE]),
    "rgba.webp": (SHEER, EXACT, [WHITE, HALF, BLUE]),
    "rgba, on red.png": (SHEER, EXACT, [RED, (127, 0, 0), BLUE]),
    "grey and alpha.png": (of_pixels("LA", (0, 0), (40, 255)), {}, [WHITE, (40, 40, 40)]),
    "clear palette, on red.png": (RED_AND_BLUE, {"transparency": 1}, [RED, RED]),
    "palette.png": (RED_AND_BLUE, {}, [RED, BLUE]),
    "bilevel.png": (of_pixels("1", 0, 1), {}, [BLACK, WHITE]),
    "cmyk.jpg": (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), {"quality": 100}, [RED]),
    **{
        f"linear.{suffix}": (Image.new("RGB", (16, 16), (128,) * 3), {"icc_profile": LINEAR, "quality": 100}, [LIT])
        for suffix in ("jpg", "png", "tif", "webp")
    },
    "linear grey.png": (Image.new("L", (4, 4), 128), {"icc_profile": LINEAR}, [LIT]),
    "linear under alpha.png": (
        of_pixels("RGBA", (128, 128, 128, 255), (128, 128, 128, 0)), {"icc_profile": LINEAR}, [LIT, WHITE],
    ),
}  # fmt: skip
"""File -> an image and how it is saved (or what writes it), and the pixels that are
read, on white or red."""


@pytest.mark.parametrize("name", PIXELS)
def test_whatever_a_file_holds_is_read_as_srgb_of_eight_bits(
    tmp_path: Path, name: str
) -> None:
    made, options, expected = PIXELS[name]
    made.save(tmp_path / name, **options) if isinstance(made, Image.Image) else made(
        tmp_path / name
    )
    image = open_image(tmp_path / name, "#ff0000" if "on red" in name else "white")
    assert image.mode == "RGB" and check_image(tmp_path / name) is None
    found = [image.getpixel((x, 0)) for x in range(len(expected))]
    is_new = "of 2 bits" in name or "of 4 bits" in name
    assert (images.image_reading(tmp_path / name) == "clear 1") == is_new
    lossy = 15 if name == "cmyk.jpg" else 2 if "linear" in name else 0
    assert numpy.abs(numpy.subtract(found, expected)).max() <= lossy


@pytest.mark.parametrize(
    ("colour_type", "bits"),
    [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8)],
)  # fmt: skip
def test_a_clear_colour_of_a_png_is_clear_at_each_depth_or_refused(
    tmp_path: Path, colour_type: int, bits: int
) -> None:
    """Two pixels, the first of which has the clear colour; 16 bits differ in the lower
    half alone."""
    bands = 3 if colour_type == 2 else 1
    row = f"{1:0{bits}b}" * bands + f"{0:0{bits}b}" * bands
    pixels = int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(
        -(-len(row) // 8), "big"
    )
    palette = chunk(b"PLTE", bytes(range(6)))
    clear = chunk(b"tRNS", b"\xff\0" if colour_type == 3 else b"\0\1" * bands)
    extra = (palette if colour_type == 3 else b"") + clear
    path = tmp_path / "a.png"
    write_png(path, 2, 1, bits, colour_type, b"\0" + pixels, extra)
    if (colour_type, bits) == (2, 16):
        reason = "is a PNG of 16 bits with a clear colour (tRNS), which is not read. Save it as sRGB PNG or JPEG"
        assert check_image(path) == reason
        return
    image = open_image(path, channels=4)
    assert [image.getpixel((x, 0))[3] for x in range(2)] == [0, 255]


@pytest.mark.parametrize(
    ("colour_type", "extra", "reason"),
    [
        (2, chunk(b"CgBI", bytes(4)), "is a PNG of an iPhone's app (CgBI), which"),
        (3, b"", "is truncated or damaged"),
    ],
    ids=["of an app", "without its palette"],
)
def test_a_png_with_right_checksums_that_cannot_be_decoded_is_refused(
    tmp_path: Path, colour_type: int, extra: bytes, reason: str
) -> None:
    path = tmp_path / "a.png"
    write_png(path, 1, 1, 8, colour_type, bytes(4 if colour_type == 2 else 2), extra)
    for read in (open_image, inspect_image, inspect_header):
        with pytest.raises(ImageError, match=re.escape(f"{path}: {reason}")):
            read(path)


def test_a_profile_that_cannot_be_used_is_ignored_and_said(tmp_path: Path) -> None:
    damaged, foreign = tmp_path / "a.png", tmp_path / "a.tif"
    Image.new("RGB", (4, 4), (10, 20, 30)).save(
        damaged, icc_profile=b"no profile at all"
    )
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(foreign, icc_profile=LINEAR)
    notes: list[str] = []
    assert open_image(damaged, note=notes.append).getpixel((0, 0)) == (10, 20, 30)
    notes += images.inspect_image(damaged).notes
    assert open_image(foreign, note=notes.append).getpixel((0, 0)) == RED
    assert ["damaged" in note for note in notes] == [
        True,
        True,
        False,
    ] and "RGB" in notes[2]


# ---------------------------------------------------------------- refused files


FRAMES = {
    "save_all": True,
    "append_images": [Image.new("RGB", (48, 32), colour) for colour in (GREEN, BLUE)],
}
REFUSED = {
    "pages.tif": (quarters(), FRAMES, "3 pages"),
    "still.gif": (quarters(), {}, "PNG"),
    **{
        f"moving.{suffix}": (quarters(), FRAMES, "is animated: 3 frames. Save")
        for suffix in ("webp", "gif", "png")
    },
    **{
        f"twice.{suffix}": (
            quarters(),
            {**FRAMES, "append_images": FRAMES["append_images"][:1]},
            "is animated: 2 frames. Save",
        )
        for suffix in ("webp", "png")
    },
    "picture.png": (quarters(), {"format": "PPM"}, "is not a JPEG"),
}


@pytest.mark.parametrize("name", [*REFUSED, "text.jpg", "nowhere.jpg"])
def test_what_cannot_be_read_faithfully_is_refused_by_name(
    tmp_path: Path, name: str
) -> None:
    image, options, reason = REFUSED.get(
        name, (None, {}, "does not exist" if "now" in name else "is not a JPEG")
    )
    if image:
        image.save(tmp_path / name, **options)
    elif name == "text.jpg":
        (tmp_path / name).write_text("hello")
    assert reason in check_image(tmp_path / name)
    with pytest.raises(ImageError, match=rf"{name}: .*{re.escape(reason)}"):
        open_image(tmp_path / name)


@pytest.mark.parametrize(
    ("length", "reason"), [(0, "is empty"), (5000, "begins with zeros")]
)
def test_what_a_full_disk_leaves_is_named(
    tmp_path: Path, length: int, reason: str
) -> None:
    (tmp_path / "a.jpg").write_bytes(bytes(length))
    assert (
        check_image(tmp_path / "a.jpg")
        == f"{reason}, as after a broken download. Copy or download it again"
    )


SAVE_OPTIONS = {
    "jpg": {"quality": 90},
    "progressive.jpg": {"progressive": True},
    "png": {},
    "webp": {"quality": 80},
    "lossless.webp": {"lossless": True},
    "avif": {"quality": 80},
    "bmp": {},
    "tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
}


@pytest.mark.parametrize("suffix", SAVE_OPTIONS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    noise().save(path, **SAVE_OPTIONS[suffix])
    assert check_image(path) is None
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert check_image(path)
    with pytest.raises(ImageError, match=r"a\."):
        open_image(path)


def test_what_the_system_does_not_let_be_read_is_not_called_damaged(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.png").symlink_to("a.png")
    assert (
        check_image(tmp_path / "a.png")
        == "cannot be read: Too many levels of symbolic links"
    )
    noise().save(tmp_path / "b.png")
    (tmp_path / "b.png").chmod(0)
    if not os.access(tmp_path / "b.png", os.R_OK):  # root may read all
        assert check_image(tmp_path / "b.png").startswith(
            "cannot be read: Permission denied: it belongs to "
        )


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:"
            + b"0" * 64
            + b"\nsize 99735\n",
            "is what Git LFS has in the place of a file that was not downloaded. Run 'git lfs pull'",
        ),
        (
            b"../../blobs/0123456789abcdef",
            "is a link that became a text file: it holds '../../blobs/0123456789abcdef'",
        ),
    ],
)
def test_what_stands_in_the_place_of_an_image_is_not_called_damaged(
    tmp_path: Path, contents: bytes, words: str
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(contents)
    assert check_image(path).startswith(words) and "damaged" not in check_image(path)
    with pytest.raises(ImageError, match=re.escape(words)):
        open_image("in a stream", data=contents)
    path.write_bytes(contents + b" and more")
    assert ("damaged" in check_image(path)) == contents.startswith(b"..")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow says what it finds odd
@pytest.mark.parametrize("suffix", SAVE_OPTIONS)
def test_damage_raises_nothing_but_image_errors(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise(64, 48).save(path, **SAVE_OPTIONS[suffix])
    whole = path.read_bytes()
    rng = numpy.random.default_rng(1)
    for _ in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 400), 6):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert open_image(path).mode == "RGB"
        except ImageError:
            continue


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_955, 60_000])
def test_pixel_cap_is_checked_before_decoding(tmp_path: Path, side: int) -> None:
    path = tmp_path / "huge.png"
    write_png(path, side, side, 1, 0, b"\0")
    assert "120" in check_image(path) and "megapixels" in check_image(path)
    with pytest.raises(ImageError, match=r"huge\.png"):
        open_image(path)


# ---------------------------------------------------------------- sizes and tensors


def test_resize_cover_crop_cuts_the_bucket_out_of_the_scaled_image() -> None:
    crop = ResizeCrop(scaled=Size(96, 64), left=32, top=0, bucket=Size(64, 64))
    image = resize_cover_crop(quarters(), crop)
    assert image.size == (64, 64)
    expected = (
        quarters().resize((96, 64), Image.Resampling.BICUBIC).crop((32, 0, 96, 64))
    )
    assert image.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["photograph", "clear", "opaque"])
def test_references_are_prepared_as_diffusers_does(tmp_path: Path, kind: str) -> None:
    import torch
    from diffusers.image_processor import VaeImageProcessor

    path, size, channels = PHOTOS / "40_photo/coffee.jpg", Size(320, 224), 3
    if kind != "photograph":
        image, path, size, channels = quarters(), tmp_path / "a.png", Size(32, 64), 4
        if kind == "clear":
            image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(path)
    with Image.open(path) as image:
        given = image.convert("RGBA" if channels == 4 else "RGB")
    prepare = VaeImageProcessor(vae_scale_factor=16).preprocess
    theirs = prepare(given, height=size.height, width=size.width)[0]
    ours = to_tensor(resize(open_image(path, channels=channels), size))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert kind == "photograph" or bool(ours[3].eq(1).all()) == (kind == "opaque")


def test_colours_of_clear_pixels_do_not_bleed(tmp_path: Path) -> None:
    """Red beside clear blue, enlarged: only the opacity falls between them."""
    image = of_pixels("RGBA", (255, 0, 0, 255), (0, 0, 255, 0))
    image.save(tmp_path / "a.png")
    size = Size(*(4 * side for side in image.size))
    enlarged = resize_cover_crop(
        open_image(tmp_path / "a.png", channels=4), ResizeCrop(size, 0, 0, size)
    )
    visible = [pixel for pixel in enlarged.getdata() if pixel[3] > 20]
    assert visible and all(red > 240 and blue < 15 for red, _, blue, _ in visible)
    assert {pixel[3] for pixel in enlarged.getdata()} > {0, 255}


def test_tensor_range_and_layout() -> None:
    import torch

    pixels_3HW = to_tensor(quarters())
    assert pixels_3HW.shape == (3, 32, 48) and pixels_3HW.dtype == torch.float32
    assert pixels_3HW[:, 0, 0].tolist() == [1.0, -1.0, -1.0]


def test_photographs() -> None:
    sizes = {path.stem: image_size(path) for path in sorted(PHOTOS.rglob("*.jpg"))}
    assert (
        sizes["coffee"] == (600, 400)
        and sizes["astronaut_face"] == (200, 250)
        and len(sizes) == 5
    )
    assert all(check_image(path) is None for path in PHOTOS.rglob("*.jpg"))


def test_unknown_background_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="nonsense"):
        open_image(tmp_path / "a.png", "nonsense")


@pytest.mark.parametrize("name", ["photo.HEIC", "photo.heif", "photo.jpg"])
def test_a_photograph_of_an_iphone_is_turned_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(TURNED_HEIC.read_bytes())
    image = open_image(path)
    assert image.size == image_size(path) == (64, 96)
    above_left, above_right, below = (
        image.getpixel(at) for at in ((8, 8), (56, 8), (32, 88))
    )
    assert above_left == pytest.approx((200, 30, 30), abs=12)
    assert above_right == pytest.approx((20, 180, 20), abs=12)
    assert below == pytest.approx((30, 30, 200), abs=12)


def test_a_photograph_of_an_iphone_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = tmp_path / "photo.heic", TURNED_HEIC.read_bytes()
    for length in (12, 40, 300, 700):
        path.write_bytes(whole[:length])
        assert "damaged" in (check_image(path) or ""), length
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    path.write_bytes(whole)
    package = f"(HEIC needs the package 'pi-heif': {install_command('pi-heif')})"
    with pytest.raises(ImageError, match=re.escape(package)):
        image_size(path)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def grain(mode: str = "RGB", size: tuple[int, int] = (61, 40)) -> Image.Image:
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
    "grey.jpg": saved(grain("L"), "JPEG"),
    "colour.jpg": saved(grain(), "JPEG"),
    "print.jpg": saved(grain("CMYK"), "JPEG"),
    "progressive.jpg": saved(grain(), "JPEG", progressive=True),
    "photo.jpg": saved(grain(), "JPEG", exif=turned(1), icc_profile=SRGB),
    "bad_profile.jpg": saved(grain(), "JPEG", icc_profile=b"no profile"),
    **{f"turned_{n}.jpg": saved(grain(), "JPEG", exif=turned(n)) for n in range(1, 9)},
    "grey.png": saved(grain("L"), "PNG"),
    "bits.png": saved(grain("1"), "PNG"),
    "colour.png": saved(grain(), "PNG"),
    "alpha.png": saved(grain("RGBA"), "PNG"),
    "grey_alpha.png": saved(grain("LA"), "PNG"),
    "palette.png": saved(grain("P"), "PNG"),
    "clear_palette.png": saved(grain("P"), "PNG", transparency=0),
    "clear_colour.png": saved(grain(), "PNG", transparency=(1, 2, 3)),
    "deep.png": saved(Image.new("I;16", (61, 40), 40_000), "PNG"),
    "said.png": saved(grain(), "PNG", pnginfo=text(parameters="a prompt")),
    "colour.webp": saved(grain(), "WEBP"),
}
UNUSUAL = {
    "turned.png": saved(grain(), "PNG", exif=turned(6)),
    "xmp.png": saved(grain(), "PNG", pnginfo=xmp_rotation()),
    "profile.png": saved(grain(), "PNG", icc_profile=SRGB),
    "moving.png": saved(
        grain(), "PNG", save_all=True, append_images=[grain("L").convert("RGB")]
    ),
    "xmp.jpg": saved(grain(), "JPEG", xmp=b'<x tiff:Orientation="6"/>'),
    "profile_in_parts.jpg": saved(grain(), "JPEG", icc_profile=b"x" * 70_000),
    "alpha.webp": saved(Image.new("RGBA", (61, 40), (9, 9, 9, 9)), "WEBP"),
    "lossless.webp": saved(grain(), "WEBP", lossless=True),
    "turned.webp": saved(grain(), "WEBP", exif=turned(6)),
    "picture.bmp": saved(grain(), "BMP"),
    "picture.tif": saved(grain(), "TIFF"),
    "picture.gif": saved(grain("P"), "GIF"),
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


def test_a_png_is_checked_by_its_checksums_and_decoded_where_it_may_be_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = numpy.random.default_rng(0)
    noise = rng.integers(256, size=(40, 40, 4), dtype=numpy.uint8)
    opaque, clear, hurt = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    Image.fromarray(noise[..., :3]).save(opaque)
    Image.fromarray(noise).save(clear)
    damaged = bytearray(opaque.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    hurt.write_bytes(damaged)
    decoded = []
    load = PngImagePlugin.PngImageFile.load
    monkeypatch.setattr(
        PngImagePlugin.PngImageFile,
        "load",
        lambda image: (decoded.append(image.mode), load(image))[1],
    )
    assert all(inspect_image(path).verified for path in (opaque, clear))
    assert set(decoded) == {"RGBA"}
    assert inspect_header(hurt).size == (40, 40)
    with pytest.raises(ImageError, match="broken"):
        inspect_image(hurt)


def test_a_png_that_the_decoder_would_fill_with_black_is_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.png"
    good = noise()
    good.save(path)
    whole = path.read_bytes()
    rows = b"".join(bytes(1) + row.tobytes() for row in numpy.asarray(good)[:90])
    start = whole.index(b"IDAT") + 4
    cut = zlib.compress(rows)
    path.write_bytes(whole[:start] + cut + whole[start + len(cut) :])
    with Image.open(path) as image:
        assert image.getpixel((9, 150)) == (0, 0, 0)  # Pillow 13.0 raises nothing
    assert inspect_header(path).size == good.size
    for read in (inspect_image, open_image, images.load_alpha):
        with pytest.raises(ImageError, match=r"checksum.*: truncated or damaged"):
            read(path)


def test_a_jpeg_that_a_download_left_half_zeros_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    whole = ORDINARY["colour.jpg"]
    path.write_bytes(whole + bytes(999))  # as some cameras fill the last block
    assert inspect_header(path).size == (61, 40)
    half = len(whole) // 2
    path.write_bytes(whole[:half] + bytes(half))
    for inspect in (inspect_header, inspect_image):
        with pytest.raises(ImageError, match=r"it has no end.*: truncated or damaged"):
            inspect(path)


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
