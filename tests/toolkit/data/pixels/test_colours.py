"""Eight patches of known sRGB values, written in each way to state colours that is
read, come back as they are; the others are refused. The formulas are the tests' own; only Pillow, numpy
and two small files of HEIC are used.

The HEIC files hold the patches, 16 x 16 pixels each in two rows, without loss
(pillow-heif 1.8.1, matrix 0, 4:4:4): `display_p3.heic` with 8 bits and nclx 12/13,
`icc_p3.heic` with 8 bits and a profile of Display P3's primaries and an exponent of
2.2, as phones write it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from tests.conftest import ROOT
from tests.toolkit.data.conftest import make_dataset
from toolkit.data.pixels import colours, images
from toolkit.data.pixels.images import inspect_header, inspect_image, open_image
from toolkit.data.pixels.unread import Unread
from toolkit.data.scan.folder import scan_datasets

PATCHES = numpy.array(
    [
        (200, 40, 30),
        (40, 180, 60),
        (30, 60, 190),
        (220, 170, 140),
        (128,) * 3,
        (255,) * 3,
        (0,) * 3,
        (250, 200, 20),
    ]
)
SIDE = 16
HEIC = {
    name: ROOT / "tests/toolkit/data/pixels" / f"{name}.heic"
    for name in ("display_p3", "icc_p3")
}

D65, D50 = (0.3127, 0.3290), (0.34567, 0.35850)
SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, *D65)
P3 = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, *D65)
ADOBE = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, *D65)
BT2020 = (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *D65)
WIDE_D50 = (0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001, *D50)


def linear(value: numpy.ndarray) -> numpy.ndarray:
    return numpy.where(
        value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4
    )


def srgb(light: numpy.ndarray) -> numpy.ndarray:
    return numpy.where(
        light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055
    )


def xyz_of(rx, ry, gx, gy, bx, by, wx, wy) -> numpy.ndarray:
    matrix = numpy.array(
        [[rx, gx, bx], [ry, gy, by], [1 - rx - ry, 1 - gx - gy, 1 - bx - by]]
    )
    return matrix * numpy.linalg.solve(matrix, [wx / wy, 1, (1 - wx - wy) / wy])


BRADFORD = numpy.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def adapted(matrix: numpy.ndarray, white: tuple[float, float]) -> numpy.ndarray:
    """A matrix to XYZ, from its own white to another one."""
    wanted = numpy.array([white[0] / white[1], 1, (1 - white[0] - white[1]) / white[1]])
    scale = (BRADFORD @ wanted) / (BRADFORD @ matrix.sum(axis=1))
    return numpy.linalg.inv(BRADFORD) @ numpy.diag(scale) @ BRADFORD @ matrix


def light_in(space: tuple[float, ...]) -> numpy.ndarray:
    """The light [8, 3] of the patches in other primaries."""
    to_other = numpy.linalg.inv(xyz_of(*space)) @ adapted(xyz_of(*SRGB), space[6:])
    return (linear(PATCHES / 255) @ to_other.T).clip(0, 1)


def power(gamma: float) -> Callable[[numpy.ndarray], numpy.ndarray]:
    return lambda light: light ** (1 / gamma)


def tiled(values: numpy.ndarray, top: int) -> numpy.ndarray:
    whole = numpy.rint(values.reshape(2, 4, -1) * top).astype(
        numpy.uint8 if top < 256 else numpy.uint16
    )
    return whole.repeat(SIDE, 0).repeat(SIDE, 1)


def difference(path: Path) -> float:
    """The worst channel of the patches, in levels of 255."""
    found = numpy.asarray(open_image(path)).astype(float)
    return float(
        abs(
            found.reshape(2, SIDE, 4, SIDE, 3).mean((1, 3)).reshape(8, 3) - PATCHES
        ).max()
    )


# ---------------------------------------------------------------- writers


def chunk(kind: bytes, data: bytes) -> bytes:
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
    )


def png(path: Path, values: numpy.ndarray, *chunks: bytes) -> None:
    """A PNG of 8 or 16 bits with these chunks before its pixels. 16 bits are filtered
    by Paeth, so that all bytes of a pixel count."""
    height, width, _ = values.shape
    wide = values.dtype == numpy.uint16
    raw = (values.astype(">u2") if wide else values).tobytes()
    stride, step = len(raw) // height, 6 if wide else 3
    rows, above = b"", bytes(stride)
    for y in range(height):
        row = raw[y * stride : (y + 1) * stride]
        filtered = bytearray(b"\4")
        for x, value in enumerate(row):
            left, upper, corner = (
                (row[x - step], above[x], above[x - step])
                if x >= step
                else (0, above[x], 0)
            )
            guess = left + upper - corner
            near = min(
                (abs(guess - left), 0, left),
                (abs(guess - upper), 1, upper),
                (abs(guess - corner), 2, corner),
            )
            filtered.append((value - near[2]) & 255)
        rows, above = rows + bytes(filtered), row
    header = struct.pack(">IIBBBBB", width, height, 16 if wide else 8, 2, 0, 0, 0)
    body = [
        chunk(b"IHDR", header),
        *chunks,
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))


def cicp(primaries: int, transfer: int, full: int = 1) -> bytes:
    return chunk(b"cICP", bytes([primaries, transfer, 0, full]))


def gama(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100000)))


def chrm(space: tuple[float, ...]) -> bytes:
    points = (*space[6:], *space[:6])
    return chunk(
        b"cHRM", struct.pack(">8I", *(round(each * 100000) for each in points))
    )


def avif(path: Path, values: numpy.ndarray, primaries: int, transfer: int) -> None:
    """Pillow writes nclx 1/13: these codes instead."""
    Image.fromarray(values).save(path, "AVIF", quality=100, subsampling="4:4:4")
    data = path.read_bytes()
    assert data.count(b"nclx\0\1\0\x0d") == 1
    path.write_bytes(
        data.replace(
            b"nclx\0\1\0\x0d", b"nclx" + struct.pack(">2H", primaries, transfer)
        )
    )


def without_nclx(path: Path, primaries: int, transfer: int) -> None:
    """Only the AV1 of an AVIF says the colours, and says these."""
    Image.fromarray(P3_8).save(path, "AVIF", quality=100, subsampling="4:4:4")
    data = path.read_bytes().replace(b"colrnclx", b"freenclx")
    begin = data.index(b"mdat\x12\0\x0a") + 8
    header = f"{int.from_bytes(data[begin : begin + 12], 'big'):096b}"
    srgb_codes = f"1{1:08b}{13:08b}"
    assert header.count(srgb_codes) == 1
    header = header.replace(srgb_codes, f"1{primaries:08b}{transfer:08b}")
    changed = int(header, 2).to_bytes(12, "big")
    path.write_bytes(data[:begin] + changed + data[begin + 12 :])


def icc(space: tuple[float, ...], gamma: float, codes: bytes = b"") -> bytes:
    """A matrix profile. codes: of a tag `cicp`."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    to_d50 = adapted(xyz_of(*space), D50)
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = [
        (b"desc", b"desc" + bytes(4) + struct.pack(">I", 5) + b"Test\0" + bytes(78 + 1))
    ]
    tags += [
        (b"wtpt", b"XYZ " + bytes(4) + b"".join(map(number, (0.9642, 1.0, 0.8249))))
    ]
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), to_d50.T, strict=True):
        tags.append((name, b"XYZ " + bytes(4) + b"".join(map(number, column))))
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    if codes:
        tags.append((b"cicp", b"cicp" + bytes(4) + codes))
    at, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags:
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(data), len(content))
        data += content
    size = at + len(data)
    head = (
        struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
        + bytes(12)
        + b"acsp"
    )
    head += bytes(28) + b"".join(map(number, (0.9642, 1.0, 0.8249)))
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + data


def grey_icc(gamma: float) -> bytes:
    return icc(SRGB, gamma).replace(b"RGB XYZ ", b"GRAYXYZ ").replace(b"rTRC", b"kTRC")


def exif_of_a_camera() -> bytes:
    """ColorSpace 65535, interoperability index R03, as a camera writes them."""
    return (
        b"Exif\0\0II*\0"
        + struct.pack("<I", 8)
        + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 26, 0)
        + struct.pack("<HHHIHHHHIII", 2, 0xA001, 3, 1, 65535, 0, 0xA005, 4, 1, 56, 0)
        + struct.pack("<HHHI4sHHI4sI", 2, 1, 2, 4, b"R03\0", 2, 7, 4, b"0100", 0)
    )


def bmp(
    path: Path,
    values: numpy.ndarray,
    space: bytes,
    ends: tuple = (),
    gamma: float = 0,
    profile: bytes = b"",
) -> None:
    """24 bits with a header of version 5. space: as it is in the file. ends: XYZ of
    red, green and blue."""
    # from below, blue first; rows of 64 pixels need no filling
    pixels = values[::-1, :, ::-1].tobytes()
    height, width, _ = values.shape
    header = (
        struct.pack(
            "<IiiHHIIiiII", 124, width, height, 1, 24, 0, len(pixels), 2835, 2835, 0, 0
        )
        + bytes(16)
        + space
    )
    header += struct.pack("<9i", *(round(value * 2**30) for value in ends or (0,) * 9))
    header += struct.pack("<3I", *[round(gamma * 65536)] * 3)
    header += struct.pack(
        "<IIII", 4, 124 + len(pixels) if profile else 0, len(profile), 0
    )
    whole = header + pixels + profile
    path.write_bytes(b"BM" + struct.pack("<IHHI", 14 + len(whole), 0, 0, 138) + whole)


def numbers(space: tuple[float, ...]) -> dict[int, tuple]:
    """The tags WhitePoint and PrimaryChromaticities."""
    points = [IFDRational(round(value * 1_000_000), 1_000_000) for value in space]
    return {318: tuple(points[6:]), 319: tuple(points[:6])}


def camera_exif(
    space: tuple[float, ...], colour_space: int, gamma: float = 0
) -> Image.Exif:
    exif = Image.Exif()
    for tag, value in numbers(space).items():
        exif[tag] = value
    exif.get_ifd(0x8769)[0xA001] = colour_space
    if gamma:
        exif.get_ifd(0x8769)[0xA500] = IFDRational(round(gamma * 10), 10)
    return exif


def tagged_tiff(path: Path, values: numpy.ndarray, tags: dict) -> None:
    Image.fromarray(values).save(path, tiffinfo=tags)


def saved(
    path: Path, space: tuple[float, ...], curve: Callable, **options: object
) -> None:
    Image.fromarray(tiled(curve(light_in(space)), 255)).save(path, **options)


ADOBE_GAMMA = 563 / 256
LOSSLESS = {
    ".jpg": {"quality": 100, "subsampling": 0},
    ".webp": {"lossless": True, "exact": True},
}
P3_8 = tiled(srgb(light_in(P3)), 255)
P3_22 = tiled(power(2.2)(light_in(P3)), 255)

WAYS: dict[str, Callable[[Path], object]] = {
    **{
        f"icc{suffix}": lambda path, suffix=suffix: saved(
            path, ADOBE, power(ADOBE_GAMMA), icc_profile=icc(ADOBE, ADOBE_GAMMA), **LOSSLESS.get(suffix, {})
        )
        for suffix in (".jpg", ".png", ".webp", ".tif")
    },
    "wide icc, 16 bits.png": lambda path: png(
        path, tiled(power(1.8)(light_in(WIDE_D50)), 65535), chunk(b"iCCP", b"x\0\0" + zlib.compress(icc(WIDE_D50, 1.8)))
    ),
    "icc p3 with nclx.avif": lambda path: Image.fromarray(P3_22).save(
        path, quality=100, subsampling="4:4:4", icc_profile=icc(P3, 2.2)
    ),
    "gama linear.png": lambda path: png(path, tiled(light_in(SRGB), 255), gama(1.0)),
    "gama 1.8.png": lambda path: png(path, tiled(power(1.8)(light_in(SRGB)), 255), gama(1 / 1.8)),
    "icc p3.heic": lambda path: path.write_bytes(HEIC["icc_p3"].read_bytes()),
}  # fmt: skip
"""A container and a way to state the colours -> what writes it."""

MOST = {"wide icc, 16 bits.png": 5, "icc p3 with nclx.avif": 4}
"""Levels: of 16 bits the higher 8 count; AVIF has a loss."""


@pytest.mark.parametrize("name", WAYS)
def test_patches_come_back_in_each_container_and_way_that_is_read(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    WAYS[name](path)
    assert difference(path) <= MOST.get(name, 3)
    info = inspect_image(path)
    assert info.colours == ("Test" if "icc" in name else info.colours) != ""
    header = inspect_header(path)
    assert (header.colours, header.reading) == (info.colours, info.reading)
    assert bool(info.reading) == name.startswith("gama"), (
        "what was read rightly before keeps its identity"
    )
    assert (
        images.image_reading(path)
        == info.reading
        == images.image_reading("x", path.read_bytes())
    )


AS_EVER: dict[str, Callable[[Path], object]] = {
    "nothing.png": lambda path: png(path, P3_8),
    "cicp srgb.png": lambda path: png(path, P3_8, cicp(1, 13)),
    "cicp unspecified.png": lambda path: png(path, P3_8, cicp(2, 2)),
    "gama of srgb.png": lambda path: png(path, P3_8, gama(0.45455)),
    "gama and chrm of srgb.png": lambda path: png(path, P3_8, gama(0.45), chrm(SRGB)),
    "the chunk srgb.png": lambda path: png(path, P3_8, chunk(b"sRGB", b"\0"), gama(1.0), chrm(ADOBE)),
    "gama of nothing.png": lambda path: png(path, P3_8, gama(0)),
    "chrm of nothing.png": lambda path: png(path, P3_8, chrm((0.0,) * 8)),
    "cicp behind the pixels.png": lambda path: path.write_bytes(_cicp_last(path)),
    "nclx srgb.avif": lambda path: avif(path, P3_8, 1, 13),
    "nclx unspecified.avif": lambda path: avif(path, P3_8, 2, 2),
    "av1 of srgb.avif": lambda path: without_nclx(path, 1, 13),
    "av1 unspecified.avif": lambda path: without_nclx(path, 2, 2),
    "the space srgb.bmp": lambda path: bmp(path, P3_8, b"BGRs", gamma=1.0),
    "calibrated by zeros.bmp": lambda path: bmp(path, P3_8, bytes(4)),
    "numbers of srgb.tif": lambda path: tagged_tiff(path, P3_8, numbers(SRGB)),
    "numbers of nothing.tif": lambda path: tagged_tiff(path, P3_8, numbers((0.0,) * 8)),
    "exif of srgb with numbers.png": lambda path: saved(path, P3, srgb, exif=camera_exif(ADOBE, 1)),
    "exif of srgb.jpg": lambda path: saved(path, SRGB, srgb, exif=exif_of_a_camera().replace(b"R03", b"R98")),
}  # fmt: skip


def test_cmyk_with_the_mark_of_a_camera_is_cmyk(tmp_path: Path) -> None:
    """Editors keep the EXIF of a photograph that they make CMYK, and may leave out the
    profile."""
    cmyk = Image.fromarray(P3_8).convert("CMYK")
    cmyk.save(tmp_path / "a.jpg", quality=100, exif=exif_of_a_camera())
    with Image.open(tmp_path / "a.jpg") as image:
        assert (
            open_image(tmp_path / "a.jpg").tobytes() == image.convert("RGB").tobytes()
        )
    assert inspect_image(tmp_path / "a.jpg").colours == ""


def _cicp_last(path: Path) -> bytes:
    png(path, P3_8)
    whole = path.read_bytes()
    return whole[:-12] + cicp(12, 13) + whole[-12:]


@pytest.mark.parametrize("name", AS_EVER)
def test_what_is_srgb_keeps_its_pixels_to_the_bit_and_its_identity(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    AS_EVER[name](path)
    info = inspect_image(path)
    assert (info.colours, info.reading) == ("", "")
    with Image.open(path) as image:
        assert open_image(path).tobytes() == image.convert("RGB").tobytes()


REFUSED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "p3.png": ("an image of other colours than sRGB (H.273 12/13)", lambda path: png(path, P3_8, cicp(12, 13))),
    "pq.png": ("an image of HDR (PQ) (H.273 9/16)", lambda path: png(path, P3_8, cicp(9, 16))),
    "hlg.avif": ("an image of HDR (HLG) (H.273 9/18)", lambda path: avif(path, P3_8, 9, 18)),
    "av1 of p3.avif": (
        "an image of other colours than sRGB (H.273 12/13)", lambda path: without_nclx(path, 12, 13)
    ),
    "av1 of pq.avif": ("an image of HDR (PQ) (H.273 9/16)", lambda path: without_nclx(path, 9, 16)),
    "bt2020.avif": ("an image of other colours than sRGB (H.273 9/1)", lambda path: avif(path, P3_8, 9, 1)),
    "nclx.heic": (
        "an image of other colours than sRGB (H.273 12/13)",
        lambda path: path.write_bytes(HEIC["display_p3"].read_bytes()),
    ),
    "pq beside a profile.png": (
        "an image of HDR (PQ) (H.273 9/16)",
        lambda path: png(path, P3_8, cicp(9, 16), chunk(b"iCCP", b"x\0\0" + zlib.compress(icc(BT2020, 2.2)))),
    ),
    "icc with cicp.png": (
        "an image of HDR (PQ) (H.273 9/16)",
        lambda path: png(path, P3_8, chunk(b"iCCP", b"x\0\0" + zlib.compress(icc(BT2020, 2.2, bytes([9, 16, 0, 1]))))),
    ),
    "chrm.png": ("a PNG of other primaries than sRGB's (cHRM)", lambda path: png(path, P3_8, chrm(P3))),
    "profile.bmp": ("a BMP of other colours than sRGB", lambda path: bmp(path, P3_22, b"DEBM", profile=icc(P3, 2.2))),
    "linked.bmp": ("a BMP of other colours than sRGB", lambda path: bmp(path, P3_8, b"KNIL", profile=b"C:\\p3.icc\0")),
    "endpoints.bmp": (
        "a BMP of other colours than sRGB",
        lambda path: bmp(path, P3_8, bytes(4), tuple(xyz_of(*SRGB).T.ravel()), 0.45455)
    ),
    "camera.jpg": (
        "a picture in Adobe RGB without its profile", lambda path: saved(path, ADOBE, srgb, exif=exif_of_a_camera())
    ),
    "space 2.jpg": (
        "a picture in Adobe RGB without its profile", lambda path: saved(path, ADOBE, srgb, exif=camera_exif(SRGB, 2))
    ),
    "numbers.tif": (
        "a picture of other colours than sRGB by its tags", lambda path: tagged_tiff(path, P3_8, numbers(P3))
    ),
    "function.tif": (
        "a picture of other colours than sRGB by its tags",
        lambda path: tagged_tiff(path, P3_8, {301: tuple(range(0, 65536, 257))}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_colours_are_refused_by_name(tmp_path: Path, name: str) -> None:
    words, write = REFUSED[name]
    path = tmp_path / name
    write(path)
    for read in (open_image, inspect_image, inspect_header):
        with pytest.raises(images.ImageError) as caught:
            read(path)
        assert str(caught.value) == (
            f"{path}: is {words}, which is not read. Save it as sRGB PNG or JPEG"
        )
    assert images.image_reading(path) == ""


def sequence_header(profile: int, wide: int, codes: bytes, reduced: int = 1) -> bytes:
    """The first units of the AV1 of a still picture, written by AV1's 5.5. wide: bits
    beside the lowest number of them."""
    bits = f"{profile:03b}1{reduced}00000" + f"{4:04b}{3:04b}" + "1" * 9 + "0" * 6
    bits += str(int(wide > 0)) + str(int(wide > 1)) * (profile == 2 and wide > 0)
    bits += "0" * (profile != 1) + "1" + "".join(f"{code:08b}" for code in codes)
    whole = int(bits.ljust(96, "0"), 2).to_bytes(12, "big")
    return b"\x12\0\x0a" + bytes([len(whole)]) + whole


@pytest.mark.parametrize("version", range(3))
@pytest.mark.parametrize(("profile", "wide"), [(0, 0), (1, 1), (2, 0), (2, 1), (2, 2)])
def test_the_codes_of_av1_are_found_in_each_form_of_its_headers(
    tmp_path: Path, version: int, profile: int, wide: int
) -> None:
    """Of a second item, too, and behind a base offset; iloc by 8.11.3 of ISO/IEC
    14496-12."""
    item = ">I" if version == 2 else ">H"
    method = b"\0\0" if version else b""
    items = b""
    for number, place in enumerate((8, 200), 1):
        name = struct.pack(item, number) + method + b"\0\0"
        parts = struct.pack(">HIIII", 2, place - 4, 9, 90, 9)
        items += name + struct.pack(">I", 4) + parts
    iloc = (
        b"iloc" + bytes([version, 0, 0, 0, 0x44, 0x40]) + struct.pack(item, 2) + items
    )
    for reduced in (1, 0):
        header = sequence_header(profile, wide, b"\x0c\x0d\0", reduced)
        whole = b"an AVIF ".ljust(100, b"-") + iloc
        path = tmp_path / "a.avif"
        path.write_bytes(whole.ljust(200, b"-") + header)
        opened = Image.new("RGB", (8, 8))
        opened.format = "AVIF"
        with path.open("rb") as opened.fp:
            said = r"other colours than sRGB \(H.273 12/13\)"
            if not reduced:
                said = "an AVIF that has the header of a film, and no nclx"
            with pytest.raises(Unread, match=said):
                colours.colours_of(opened)


def test_codes_that_a_profile_overrules_refuse_nothing(tmp_path: Path) -> None:
    """A tag `cicp` that is not of HDR, and `nclx` of Display P3 beside a profile."""
    profile = icc(P3, 2.2, bytes([12, 13, 0, 0]))
    for name in ("a.avif", "a.png"):
        Image.fromarray(P3_22).save(tmp_path / name, icc_profile=profile)
        assert inspect_header(tmp_path / name).colours == "Test"


def test_a_profile_of_srgb_is_not_counted(tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    saved(tmp_path / "a.png", SRGB, srgb, icc_profile=profile)
    saved(tmp_path / "b.png", SRGB, srgb, icc_profile=b"damaged")
    assert (
        inspect_header(tmp_path / "a.png").colours
        == inspect_header(tmp_path / "b.png").colours
        == ""
    )


def test_opacity_and_rotation_stay(tmp_path: Path) -> None:
    linear_8 = tiled(light_in(SRGB), 255)
    rgba = numpy.dstack([linear_8, numpy.full(linear_8.shape[:2], 255, numpy.uint8)])
    rgba[:SIDE, :SIDE, 3] = 0
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgba).save(tmp_path / "a.png", exif=exif)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:33] + gama(1.0) + whole[33:])
    image = open_image(tmp_path / "a.png", channels=4)
    assert (
        image.size == (2 * SIDE, 4 * SIDE) and image.getpixel((2 * SIDE - 1, 0))[3] == 0
    )
    assert image.getpixel((0, 0))[:3] == pytest.approx(PATCHES[4], abs=3)
    assert image.getpixel((2 * SIDE - 1, SIDE))[:3] == pytest.approx(PATCHES[1], abs=3)


def test_grey_of_a_linear_png_is_brighter(tmp_path: Path) -> None:
    Image.fromarray(numpy.full((2, 2), 128, numpy.uint8)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:33] + gama(1.0) + whole[33:])
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (188, 188, 188)


@pytest.mark.parametrize("suffix", ["avif", "png"])
def test_damaged_headers_are_as_if_nothing_was_said(
    tmp_path: Path, suffix: str
) -> None:
    """The parsers end, whatever the lengths in a file say."""
    path = tmp_path / f"a.{suffix}"
    if suffix == "avif":
        without_nclx(path, 12, 13)
    else:
        png(path, P3_8, cicp(12, 13))
    whole = path.read_bytes()
    rng = numpy.random.default_rng(0)

    class Opened:
        def __init__(self) -> None:
            self.format, self.mode, self.info = suffix.upper(), "RGB", {}

    for index in range(200):
        damaged = bytearray(whole[: 400 if index % 2 else rng.integers(8, 400)])
        for place in rng.integers(8, len(damaged), 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with path.open("rb") as file:
            opened = Opened()
            opened.fp = file
            with suppress(Unread):
                assert isinstance(colours.colours_of(opened).name, str)


FAULTS = {
    "grey.png": (grey_icc(2.2), "is for grey, its pixels are RGB"),
    "grey.webp": (grey_icc(2.2), "is for grey, its pixels are RGB"),
    "rgb.jpg": (icc(P3, 2.2), "is for RGB, its pixels are CMYK"),
    "damaged.png": (b"damaged", "is damaged"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_profile_that_is_not_used_is_named_by_the_scan_and_the_reader(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    profile, wrong = FAULTS[name]
    Image.fromarray(P3_8).convert("CMYK" if name == "rgb.jpg" else "RGB").save(
        path, icc_profile=profile
    )
    notes = list[str]()
    open_image(path, note=notes.append)
    assert tuple(notes) == inspect_image(path).notes == inspect_header(path).notes
    assert notes == [f"its colour profile {wrong}: taken as sRGB"]


def test_a_picture_that_lost_its_profile_is_named_once_for_all_of_a_folder(
    tmp_path: Path,
) -> None:
    """A phone's Display P3 whose profile a messenger left out: EXIF says
    "uncalibrated"."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 65535
    for name in "ab":
        saved(tmp_path / f"{name}.jpg", P3, srgb, exif=exif)
        (tmp_path / f"{name}.txt").write_text(name)
    fault = "its EXIF says that its colours are not sRGB, but not which they are: taken as sRGB"
    assert inspect_image(tmp_path / "a.jpg").notes == (fault,)
    assert (
        scan_datasets([make_dataset(tmp_path)], None).notes[0]
        == f"{tmp_path}: a.jpg, b.jpg: {fault}"
    )
    (tmp_path / "b.jpg").unlink()
    assert (
        f"{tmp_path}/a.jpg: {fault}"
        in scan_datasets([make_dataset(tmp_path)], None).notes
    )
    saved(tmp_path / "a.jpg", P3, power(2.2), exif=exif, icc_profile=icc(P3, 2.2))
    assert inspect_image(tmp_path / "a.jpg").notes == ()
