"""JPEG XL and AVIF of HDR, which imagecodecs decodes. Headers of JPEG XL are also
written here, bit by bit."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
from PIL import Image

from tests.toolkit.data.pixels.test_colours import (
    ADOBE,
    ADOBE_8,
    ADOBE_GAMMA,
    BT2020,
    P3,
    P3_8,
    P3_22,
    SIDE,
    SRGB,
    WIDE_D50,
    difference,
    icc,
    light_in,
    pq,
    srgb,
    tiled,
)
from toolkit.data.pixels import images, jxl
from toolkit.data.pixels.images import (
    ImageError,
    image_size,
    inspect_header,
    inspect_image,
    open_image,
)

imagecodecs = import_module("imagecodecs") if find_spec("imagecodecs") else None
decodes = pytest.mark.skipif(imagecodecs is None, reason="imagecodecs is not installed")

WIDE_18 = tiled(light_in(WIDE_D50) ** (1 / 1.8), 255)
SRGB_8 = tiled(srgb(light_in(SRGB)), 255)


class Writer:
    """Bit fields, the lowest bits of each byte first."""

    def __init__(self) -> None:
        self.bits = ""

    def put(self, value: int, count: int) -> Writer:
        self.bits = f"{value:0{count}b}"[-count:] + self.bits if count else self.bits
        return self

    def enum(self, value: int) -> Writer:
        if value < 2:
            return self.put(value, 2)
        return (
            self.put(2, 2).put(value - 2, 4)
            if value < 18
            else self.put(3, 2).put(value - 18, 6)
        )

    def point(self, *values: float) -> Writer:
        """Chromaticities in millionths, the sign in the lowest bit."""
        for value in values:
            number = 2 * round(value * 1_000_000)
            choice = min(number >> 19, 2)
            self.put(choice, 2).put(number - (choice << 19), 19 if choice < 2 else 20)
        return self

    def data(self) -> bytes:
        length = -(-len(self.bits) // 8)
        return int(self.bits, 2).to_bytes(length, "little")


def frames_of(codestream: bytes) -> bytes:
    """What follows the header, of a file of imagecodecs: colours without extra
    channels."""
    bits = jxl._Bits(codestream[2:1024])
    whole = bits._left
    jxl._size(bits)
    if not bits.flag():
        assert not bits.flag(), "no extra fields"
        jxl._depth(bits)
        bits.flag()
        assert bits.take(2) == 0, "no extra channels"
        bits.flag()
        is_srgb = bits._value & 1
        jxl._colours(bits)
        if not is_srgb:
            bits.enum()  # the rendering intent
        assert bits.take(2) == 0, "no extensions"
    assert bits.flag(), "the usual transform"
    used = whole - bits._left
    return codestream[2 + -(-used // 8) :]


def with_header(
    codestream: bytes,
    primaries: int,
    transfer: int,
    depth: int = 8,
    orientation: int = 1,
    is_xyb: bool = False,
    profile: bool = False,
    points: tuple[float, ...] = (),
    gamma: float = 0,
) -> bytes:
    """The same pixels with another header."""
    codestream, _ = jxl._codestream_of(codestream)
    header, frames = jxl.read_header(codestream), frames_of(codestream)
    out = (
        Writer()
        .put(0, 1)
        .put(1, 2)
        .put(header.height - 1, 13)
        .put(0, 3)
        .put(1, 2)
        .put(header.width - 1, 13)
    )
    out.put(0, 1)  # not all is as usual
    out.put(orientation > 1, 1)
    if orientation > 1:
        out.put(orientation - 1, 3).put(0, 3)
    out.put(0, 1).put(3, 2).put(depth - 1, 6).put(1, 1).put(0, 2).put(is_xyb, 1)
    out.put(0, 1).put(profile, 1).enum(0)
    if not profile:
        if points:
            out.enum(2).point(*points[6:]).enum(2).point(*points[:6])
        else:
            out.enum(1).enum(primaries)
        out.put(gamma > 0, 1)
        if gamma:
            out.put(round(gamma * 10_000_000), 24)
        else:
            out.enum(transfer)
        out.enum(1)
    if orientation > 1:
        out.put(1, 1)
    return jxl.BEGINNINGS[0] + out.put(0, 2).put(1, 1).data() + frames


@decodes
def test_patches_of_jpeg_xl_come_back_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.jxl"
    path.write_bytes(imagecodecs.jpegxl_encode(SRGB_8, lossless=True))
    assert numpy.array_equal(numpy.asarray(open_image(path)), SRGB_8)
    info = inspect_image(path)
    assert (
        info.colours == info.reading == ""
        and info.verified
        and not inspect_header(path).alpha
    )
    assert (
        image_size(path) == image_size("a", path.read_bytes()) == (4 * SIDE, 2 * SIDE)
    )
    assert images.media_type(path) == "image/jxl" and images.pixel_mode(path) == (
        "RGB",
        False,
    )


@decodes
@pytest.mark.parametrize(
    ("name", "values", "depth", "codes"),
    [
        ("Display P3", P3_8, 8, (11, 13)),
        ("HDR (PQ)", tiled(pq(light_in(BT2020)), 65535), 16, (9, 16)),
        ("HDR (PQ)", tiled(pq(light_in(BT2020)), 1023), 10, (9, 16)),
        ("gamma 1", tiled(light_in(SRGB), 65535), 16, (1, 8)),
    ],
)
def test_the_header_says_which_colours_they_are(
    tmp_path: Path, name: str, values, depth: int, codes
) -> None:
    path = tmp_path / "a.jxl"
    plain = imagecodecs.jpegxl_encode(values, lossless=True, bitspersample=depth)
    path.write_bytes(with_header(plain, *codes, depth=depth))
    assert difference(path) <= 3
    found = inspect_header(path)
    assert (
        found.colours == ("H.273 1/8" if name == "gamma 1" else name) and found.reading
    )


@decodes
@pytest.mark.parametrize(
    ("name", "values", "options"),
    [
        ("Adobe RGB", ADOBE_8, {"points": ADOBE, "gamma": 1 / ADOBE_GAMMA}),
        (
            "the primaries of its header",
            tiled(light_in(WIDE_D50) ** (1 / 1.8), 255),
            {"points": WIDE_D50, "gamma": 1 / 1.8},
        ),
        (
            "the primaries of its header",
            tiled(srgb(light_in(WIDE_D50)), 65535),
            {"points": WIDE_D50, "depth": 16},
        ),
        ("the primaries of its header", P3_22, {"primaries": 11, "gamma": 1 / 2.2}),
        ("Display P3", P3_8, {"points": P3}),
    ],
)
def test_the_header_may_give_numbers(
    tmp_path: Path, name: str, values, options: dict
) -> None:
    path = tmp_path / "a.jxl"
    depth = options.get("depth", 8)
    plain = imagecodecs.jpegxl_encode(values, lossless=True, bitspersample=depth)
    path.write_bytes(with_header(plain, **{"primaries": 1, "transfer": 13, **options}))
    assert numpy.array_equal(imagecodecs.jpegxl_decode(path.read_bytes()), values), (
        "libjxl reads the header"
    )
    assert difference(path) <= 3 and inspect_header(path).colours == name


@decodes
def test_lossy_ones_are_given_in_the_colours_of_their_header(tmp_path: Path) -> None:
    path = tmp_path / "a.jxl"
    plain = imagecodecs.jpegxl_encode(SRGB_8, level=95)
    path.write_bytes(with_header(plain, 11, 13, is_xyb=True))
    p3 = tiled(srgb(light_in(P3)), 255).astype(int)
    values = imagecodecs.jpegxl_decode(path.read_bytes()).astype(int)
    assert abs(values[8::16, 8::16] - p3[8::16, 8::16]).max() < 12, (
        "libjxl has made Display P3 of them"
    )
    assert difference(path) <= 8  # as much as the same file has without the change
    assert inspect_image(path).colours == "Display P3"


@decodes
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_it_is_turned_once(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.jxl"
    path.write_bytes(
        with_header(
            imagecodecs.jpegxl_encode(SRGB_8, lossless=True),
            1,
            13,
            orientation=orientation,
        )
    )
    turned = Image.fromarray(SRGB_8)
    if orientation > 1:
        turned = turned.transpose(images._UPRIGHT[orientation])
    assert image_size(path) == turned.size
    assert open_image(path).tobytes() == turned.tobytes()


@decodes
def test_opacity_and_grey(tmp_path: Path) -> None:
    rgba = numpy.dstack([SRGB_8, numpy.full(SRGB_8.shape[:2], 255, numpy.uint8)])
    rgba[:4] = 0
    (tmp_path / "a.jxl").write_bytes(imagecodecs.jpegxl_encode(rgba, lossless=True))
    image = open_image(tmp_path / "a.jxl", channels=4)
    assert (
        numpy.array_equal(numpy.asarray(image), rgba)
        and inspect_image(tmp_path / "a.jxl").alpha
    )
    (tmp_path / "b.jxl").write_bytes(
        imagecodecs.jpegxl_encode(SRGB_8[..., 0].copy(), lossless=True)
    )
    assert numpy.array_equal(
        numpy.asarray(open_image(tmp_path / "b.jxl"))[..., 1], SRGB_8[..., 0]
    )


@decodes
def test_a_packed_jpeg_is_that_jpeg_with_its_profile_and_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(P3_8).save(
        tmp_path / "a.jpg",
        quality=98,
        subsampling=0,
        icc_profile=icc(P3, 2.2),
        exif=exif,
    )
    (tmp_path / "a.jxl").write_bytes(
        imagecodecs.jpegxl_encode_jpeg((tmp_path / "a.jpg").read_bytes())
    )
    assert (
        open_image(tmp_path / "a.jxl").tobytes()
        == open_image(tmp_path / "a.jpg").tobytes()
    )
    assert inspect_image(tmp_path / "a.jxl") == inspect_image(tmp_path / "a.jpg")


@decodes
def test_what_cannot_be_read_faithfully_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jxl"
    plain = imagecodecs.jpegxl_encode(SRGB_8, lossless=True)
    for data, reason in (
        (
            imagecodecs.jpegxl_encode((SRGB_8 / 255).astype("f4"), lossless=True),
            "is a JPEG XL of float32",
        ),
        (with_header(plain, 1, 13, profile=True), "is a JPEG XL with an ICC profile"),
        (plain[: len(plain) // 2], "damaged"),
        (plain[:3], "damaged"),
        (jxl.BEGINNINGS[1], "damaged"),
    ):
        path.write_bytes(data)
        with pytest.raises(ImageError, match=reason):
            inspect_image(path)


@decodes
def test_damage_raises_nothing_but_image_errors(tmp_path: Path) -> None:
    path, rng = tmp_path / "a.jxl", numpy.random.default_rng(0)
    whole = imagecodecs.jpegxl_encode(SRGB_8, lossless=True)
    for _ in range(100):
        damaged = bytearray(whole)
        for place in rng.integers(2, min(len(whole), 60), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert open_image(path).mode == "RGB"
        except ImageError:
            continue


def test_without_its_decoder_a_jxl_names_package_and_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    for beginning in jxl.BEGINNINGS:
        (tmp_path / "a.jxl").write_bytes(beginning + bytes(40))
        with pytest.raises(
            ImageError,
            match=r"'imagecodecs' \(extra 'jxl'\): .*pip install imagecodecs",
        ):
            image_size(tmp_path / "a.jxl")


def hdr_avif(path: Path) -> None:
    values = tiled(pq(light_in(BT2020)), 1023)
    options = {"primaries": 9, "transfer": 16, "matrix": 0, "pixelformat": "444"}
    path.write_bytes(
        imagecodecs.avif_encode(values, level=100, bitspersample=10, **options)
    )


@decodes
@pytest.mark.parametrize("bits", [8, 10, 12])
def test_other_colours_of_avif_are_read_with_all_its_bits(
    tmp_path: Path, bits: int, monkeypatch
) -> None:
    values = tiled(srgb(light_in(P3)), 2**bits - 1)
    options = {
        "primaries": 12,
        "transfer": 13,
        "matrix": 0 if bits == 8 else 1,
        "pixelformat": "444",
    }
    path = tmp_path / "a.avif"
    path.write_bytes(
        imagecodecs.avif_encode(values, level=100, bitspersample=bits, **options)
    )
    assert difference(path) <= 3
    reading = inspect_image(path).reading
    assert (
        reading.endswith("16 bits") == (bits > 8)
        and images.image_reading(path) == reading
    )
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    assert difference(path) <= 10 and (images.image_reading(path) == reading) == (
        bits == 8
    )


@decodes
@pytest.mark.parametrize("orientation", [2, 6])
def test_the_decoder_of_avif_turns_nothing(tmp_path: Path, orientation: int) -> None:
    """So its pixels are turned by the EXIF that Pillow makes of the rotation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.avif"
    Image.fromarray(SRGB_8).save(path, quality=100, subsampling="4:4:4", exif=exif)
    assert (
        numpy.abs(imagecodecs.avif_decode(path.read_bytes()).astype(int) - SRGB_8).max()
        <= 4
    )
    assert open_image(path).size == (
        (2 * SIDE, 4 * SIDE) if orientation == 6 else (4 * SIDE, 2 * SIDE)
    )


@decodes
def test_hdr_of_avif_is_read_with_all_its_bits(tmp_path: Path) -> None:
    hdr_avif(tmp_path / "a.avif")
    assert difference(tmp_path / "a.avif") <= 3
    found = inspect_image(tmp_path / "a.avif")
    assert found.colours == "HDR (PQ)" and found.is_hdr
    assert (
        open_image("a", data=(tmp_path / "a.avif").read_bytes()).tobytes()
        == open_image(tmp_path / "a.avif").tobytes()
    )


@decodes
def test_without_a_decoder_for_its_bits_an_avif_of_hdr_names_the_package(
    tmp_path: Path, monkeypatch
) -> None:
    hdr_avif(tmp_path / "a.avif")
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    with pytest.raises(
        ImageError,
        match=r"is HDR \(PQ\), of which Pillow gives 8 bits.* \(extra 'hdr'\): .*pip install",
    ):
        image_size(tmp_path / "a.avif")
