"""Every image in these tests is a real file, written by Pillow (or by hand where Pillow cannot)."""

import os
import struct
import zlib
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageCms

from toolkit.data import images
from toolkit.data.images import (
    ImageError,
    image_size,
    open_image,
    resize,
    resize_cover_crop,
    to_tensor,
)
from toolkit.data.types import ResizeCrop, Size

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
    """48 x 32: red and green above, blue and grey below; no rotation of it looks like another."""
    image = Image.new("RGB", (48, 32))
    for colour, place in ((RED, (0, 0)), (GREEN, (24, 0)), (BLUE, (0, 16)), (GREY, (24, 16))):
        image.paste(colour, (*place, place[0] + 24, place[1] + 16))
    return image


def noise(width: int = 200, height: int = 160) -> Image.Image:
    values = numpy.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(values)


def write_png(path: Path, width: int, height: int, depth: int, colour_type: int, rows: bytes, extra=b"") -> None:
    """A PNG of any depth; `rows` holds the filter bytes too."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def chunk_trns(*values: int) -> bytes:
    data = struct.pack(f">{len(values)}H", *values)
    return struct.pack(">I", len(data)) + b"tRNS" + data + struct.pack(">I", zlib.crc32(b"tRNS" + data))


# ---------------------------------------------------------------- EXIF


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_exactly_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    undo = {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE}
    undo |= {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180}
    undo |= {4: Image.Transpose.FLIP_TOP_BOTTOM, 8: Image.Transpose.ROTATE_270}
    stored = quarters() if orientation == 1 else quarters().transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {"quality": 100}))

    image = open_image(path)
    assert image_size(path) == image.size == (48, 32)
    assert check_image(path) is None
    for place, colour in (((8, 8), RED), ((40, 8), GREEN), ((8, 24), BLUE), ((40, 24), GREY)):
        assert numpy.abs(numpy.subtract(image.getpixel(place), colour)).max() <= 4


def test_damaged_exif_leaves_the_picture_usable(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    quarters().save(path, exif=b"Exif\0\0garbage that is no TIFF header")
    assert open_image(path).size == image_size(path) == (48, 32)


# ---------------------------------------------------------------- depth


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    values = numpy.array([[0, 128, 129, 32767, 65535]], dtype=numpy.uint16)
    Image.fromarray(values).save(path)
    assert numpy.asarray(open_image(path))[0, :, 0].tolist() == [0, 0, 1, 127, 255]
    assert check_image(path) is None


def test_sixteen_bit_big_endian_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 32767, 65535)).save(path)
    assert numpy.asarray(open_image(path))[0, :, 1].tolist() == [127, 255]


def test_thirty_two_bit_file_with_sixteen_bit_values_is_scaled(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(numpy.array([[0, 32767, 65535]], dtype=numpy.int32)).save(path)
    assert numpy.asarray(open_image(path))[0, :, 0].tolist() == [0, 127, 255]


def test_thirty_two_bit_values_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(numpy.array([[0, 70000]], dtype=numpy.int32)).save(path)
    assert "32-bit" in check_image(path)
    with pytest.raises(ImageError, match="32-bit"):
        open_image(path)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bit_colour_png_is_scaled(tmp_path: Path, colour_type: int, channels: int) -> None:
    path = tmp_path / "a.png"
    values = [32767] * channels if channels == 3 else [32767] * (channels - 1) + [65535]
    write_png(path, 1, 1, 16, colour_type, b"\0" + struct.pack(f">{channels}H", *values))
    assert open_image(path).getpixel((0, 0)) == (127, 127, 127)


def test_sixteen_bit_grey_png_with_a_transparent_value(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_png(path, 2, 1, 16, 0, b"\0" + struct.pack(">2H", 300, 301), chunk_trns(300))
    image = open_image(path, "red")
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [RED, (1, 1, 1)]


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(numpy.ones((4, 4), dtype=numpy.float32)).save(path)
    assert "floating-point" in check_image(path)


# ---------------------------------------------------------------- transparency


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_rgba_is_composited_on_the_background(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 0), (0, 0, 0, 128), (0, 0, 255, 255)])
    image.save(path, lossless=True, exact=True)
    over_white = [open_image(path).getpixel((x, 0)) for x in range(3)]
    assert over_white == [(255, 255, 255), (127, 127, 127), BLUE]
    assert open_image(path, "#00ff00").getpixel((0, 0)) == GREEN


def test_grey_with_alpha_is_composited(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = Image.new("LA", (2, 1))
    image.putdata([(0, 0), (40, 255)])
    image.save(path)
    assert [open_image(path).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (40, 40, 40)]


def test_palette_with_transparency_is_composited(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(path, transparency=0)
    assert [open_image(path, "black").getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), BLUE]
    image.save(path)
    assert open_image(path).getpixel((0, 0)) == RED


def test_bilevel_and_palette_without_transparency(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = Image.new("1", (2, 1))
    image.putdata([0, 1])
    image.save(path)
    assert [open_image(path).getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]


# ---------------------------------------------------------------- colour


def test_cmyk_without_profile(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, quality=100)
    red, green, blue = open_image(path).getpixel((8, 8))
    assert red > 240 and green < 15 and blue < 15
    assert check_image(path) is None


def gamma_one_profile() -> bytes:
    """An RGB profile with sRGB's primaries and linear light: the profile bytes of sRGB, its curves replaced."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", profile, 128)[0]
    for index in range(count):
        name, offset = struct.unpack_from(">4sI", profile, 132 + 12 * index)
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            profile[offset : offset + 12] = b"curv" + bytes(8)  # a curve of 0 entries is the identity
    return bytes(profile)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_embedded_profile_is_converted_to_srgb(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    linear_half = Image.new("RGB", (16, 16), (128, 128, 128))
    linear_half.save(path, icc_profile=gamma_one_profile(), quality=100)
    # sRGB encodes linear 128/255 as 1.055 * 0.502 ** (1 / 2.4) - 0.055 = 0.7367, times 255 = 188
    assert all(abs(value - 188) <= 2 for value in open_image(path).getpixel((8, 8)))


def test_profile_is_applied_under_transparency(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = Image.new("RGBA", (2, 1))
    image.putdata([(128, 128, 128, 255), (128, 128, 128, 0)])
    image.save(path, icc_profile=gamma_one_profile())
    assert abs(open_image(path).getpixel((0, 0))[0] - 188) <= 2
    assert open_image(path).getpixel((1, 0)) == (255, 255, 255)


def test_damaged_profile_is_taken_as_srgb_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4), (10, 20, 30)).save(path, icc_profile=b"no profile at all")
    notes = []
    assert open_image(path, note=notes.append).getpixel((0, 0)) == (10, 20, 30)
    notes += images.inspect_image(path).notes
    assert len(notes) == 2 and all("damaged" in note for note in notes)


def test_profile_of_another_colour_model_is_ignored_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(path, icc_profile=gamma_one_profile())
    notes = []
    assert open_image(path, note=notes.append).getpixel((0, 0)) == RED
    assert "RGB" in notes[0]


def test_grey_image_with_an_rgb_profile(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (4, 4), 128).save(path, icc_profile=gamma_one_profile())
    assert abs(open_image(path).getpixel((0, 0))[0] - 188) <= 2


def test_lab_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.new("LAB", (4, 4), (255, 128, 128)).save(path)
    assert min(open_image(path).getpixel((0, 0))) > 240


# ---------------------------------------------------------------- refused files


@pytest.mark.parametrize("suffix", ["webp", "gif", "png"])
def test_animations_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert "is animated: 3 frames. Save one of them as PNG" in check_image(path)
    with pytest.raises(ImageError, match=f"a.{suffix}: is animated"):
        open_image(path)


def test_tiff_of_several_pages_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    quarters().save(path, save_all=True, append_images=[quarters()])
    assert "2 pages" in check_image(path)


def test_still_gif_is_refused_with_a_remedy(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.gif")
    assert "PNG" in check_image(tmp_path / "a.gif")


def test_jpeg_with_several_pictures_is_a_photograph(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    quarters().save(path, format="MPO", save_all=True, append_images=[quarters().resize((8, 8))])
    with Image.open(path) as image:
        assert image.n_frames == 2
    assert check_image(path) is None
    assert open_image(path).size == (48, 32)


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
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.97])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    noise().save(path, **SAVE_OPTIONS[suffix])
    assert check_image(path) is None
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert check_image(path)
    with pytest.raises(ImageError, match=r"a\."):
        open_image(path)


def test_what_the_system_does_not_let_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("a.png")
    assert check_image(tmp_path / "a.png") == "cannot be read: Too many levels of symbolic links"
    noise().save(tmp_path / "b.png")
    (tmp_path / "b.png").chmod(0)
    if not os.access(tmp_path / "b.png", os.R_OK):  # root may read all
        assert check_image(tmp_path / "b.png") == "cannot be read: Permission denied"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow says what it finds odd
@pytest.mark.parametrize("suffix", SAVE_OPTIONS)
def test_damage_raises_nothing_but_image_errors(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise(64, 48).save(path, **SAVE_OPTIONS[suffix])
    whole = path.read_bytes()
    rng = numpy.random.default_rng(1)
    for _ in range(60):
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


def test_what_is_no_image_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_text("hello")
    assert "is not a JPEG" in check_image(path)
    assert "does not exist" in check_image(tmp_path / "b.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png", format="PPM")
    assert "is not a JPEG" in check_image(tmp_path / "c.png")


def test_odd_names(tmp_path: Path) -> None:
    for name in ("ü [x] 🙂.png", "e\u0301.png", " a .png"):
        quarters().save(tmp_path / name)
        assert open_image(tmp_path / name).size == (48, 32)


# ---------------------------------------------------------------- sizes and tensors


def test_resize_cover_crop_cuts_the_bucket_out_of_the_scaled_image() -> None:
    crop = ResizeCrop(scaled=Size(96, 64), left=32, top=0, bucket=Size(64, 64))
    image = resize_cover_crop(quarters(), crop)
    assert image.size == (64, 64)
    expected = quarters().resize((96, 64), Image.Resampling.BICUBIC).crop((32, 0, 96, 64))
    assert image.tobytes() == expected.tobytes()


def test_references_are_prepared_as_diffusers_does() -> None:
    import torch
    from diffusers.image_processor import VaeImageProcessor

    image = open_image(PHOTOS / "40_photo/coffee.jpg")
    theirs = VaeImageProcessor(vae_scale_factor=16).preprocess(image, height=224, width=320)[0]
    torch.testing.assert_close(to_tensor(resize(image, Size(320, 224))), theirs, rtol=0, atol=0)


def test_tensor_range_and_layout() -> None:
    import torch

    pixels_3HW = to_tensor(quarters())
    assert pixels_3HW.shape == (3, 32, 48) and pixels_3HW.dtype == torch.float32
    assert pixels_3HW[:, 0, 0].tolist() == [1.0, -1.0, -1.0]


def test_photographs() -> None:
    sizes = {path.stem: image_size(path) for path in sorted(PHOTOS.rglob("*.jpg"))}
    assert sizes["coffee"] == (600, 400) and sizes["astronaut_face"] == (200, 250) and len(sizes) == 5
    assert all(check_image(path) is None for path in PHOTOS.rglob("*.jpg"))


def test_unknown_background_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="nonsense"):
        open_image(tmp_path / "a.png", "nonsense")
