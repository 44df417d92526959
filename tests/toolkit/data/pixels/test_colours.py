"""Eight patches of known sRGB values, written in every container and every way to state
the colours, come back as they are. The formulas are the tests' own; only Pillow, numpy
and two small files of HEIC are used.

The HEIC files hold the patches, 16 x 16 pixels each in two rows, without loss
(pillow-heif 1.8.1, matrix 0, 4:4:4): `display_p3.heic` with 8 bits and nclx 12/13,
`hdr_pq.heic` with 10 bits and nclx 9/16, `icc_p3.heic` with 8 bits and a profile of
Display P3's primaries and an exponent of 2.2.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from tests.conftest import ROOT
from tests.toolkit.data.conftest import make_dataset
from toolkit.data.pixels import avif as avif_header
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
    for name in ("display_p3", "hdr_pq", "icc_p3")
}

D65, D50 = (0.3127, 0.3290), (0.34567, 0.35850)
SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, *D65)
P3 = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, *D65)
ADOBE = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, *D65)
BT2020 = (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *D65)
BT601 = (0.63, 0.34, 0.31, 0.595, 0.155, 0.07, *D65)
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


def pq(light: numpy.ndarray) -> numpy.ndarray:
    power = (light * 203 / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(light: numpy.ndarray) -> numpy.ndarray:
    """Of a display of 1000 cd/m2 with a system gamma of 1.2: the inverse of the OOTF,
    then the OETF."""
    shown = light * 203 / 1000
    luminance = shown @ [0.2627, 0.6780, 0.0593]
    scene = shown * numpy.where(luminance > 0, luminance, 1)[:, None] ** (1 / 1.2 - 1)
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * numpy.log(4 * a)
    return numpy.where(
        scene <= 1 / 12,
        (3 * scene) ** 0.5,
        a * numpy.log(numpy.maximum(12 * scene - b, 1e-9)) + c,
    )


def bt709(light: numpy.ndarray) -> numpy.ndarray:
    return numpy.where(light < 0.018, 4.5 * light, 1.099 * light**0.45 - 0.099)


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


def exact_avif(
    path: Path, values: numpy.ndarray, bits: int, primaries: int, transfer: int
) -> None:
    """Without loss: RGB is stored as it is."""
    codec = pytest.importorskip("imagecodecs")
    tiles = tiled(values, 2**bits - 1)
    codes = {"primaries": primaries, "transfer": transfer, "matrix": 0}
    path.write_bytes(
        codec.avif_encode(tiles, bitspersample=bits, pixelformat="444", **codes)
    )


def without_nclx(path: Path, count: int = 1) -> None:
    """Leaves the sequence header of the AV1 to say the colours."""
    data = path.read_bytes()
    assert data.count(b"colrnclx") == count
    path.write_bytes(data.replace(b"colrnclx", b"skipnclx"))


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


def transfer_function(
    gamma: float, tables: int = 1, count: int = 256
) -> dict[int, tuple]:
    values = [(value / (count - 1)) ** gamma * 65535 for value in range(count)]
    return {301: tuple(map(round, values)) * tables}


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
P3_8, P3_16 = (tiled(srgb(light_in(P3)), top) for top in (255, 65535))
ADOBE_8, ADOBE_16 = (
    tiled(power(ADOBE_GAMMA)(light_in(ADOBE)), top) for top in (255, 65535)
)
P3_22 = tiled(power(2.2)(light_in(P3)), 255)
PQ_16, HLG_16 = (tiled(curve(light_in(BT2020)), 65535) for curve in (pq, hlg))


def tiff(path: Path, values: numpy.ndarray, order: str) -> None:
    """RGB in one strip, with EXIF's mark of Adobe RGB. order: `<` little endian, `>`
    big."""
    height, width, _ = values.shape
    bytes_each = values.dtype.itemsize
    bits = 8 + 2 + 12 * 11 + 4
    exif = bits + 6
    index = exif + 2 + 24 + 4
    pixels = index + 2 + 24 + 4
    short, long = 3, 4

    def entry(tag: int, kind: int, value: int, count: int = 1) -> bytes:
        is_short = kind == short and count == 1
        packed = (
            struct.pack(order + "HH", value, 0)
            if is_short
            else struct.pack(order + "I", value)
        )
        return struct.pack(order + "HHI", tag, kind, count) + packed

    def ifd(*entries: bytes) -> bytes:
        return struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)

    size = [
        entry(256, short, width),
        entry(257, short, height),
        entry(258, short, bits, 3),
    ]
    kind = [
        entry(259, short, 1),
        entry(262, short, 2),
        entry(273, long, pixels),
        entry(277, short, 3),
    ]
    strips = [
        entry(278, short, height),
        entry(279, long, values.size * bytes_each),
        entry(284, short, 1),
    ]
    data = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    data += ifd(*size, *kind, *strips, entry(0x8769, long, exif)) + struct.pack(
        order + "3H", *[8 * bytes_each] * 3
    )
    data += ifd(entry(0xA001, short, 65535), entry(0xA005, long, index))
    text = struct.pack(order + "HHI", 1, 2, 4) + b"R03\0"
    data += ifd(text, struct.pack(order + "HHI", 2, 7, 4) + b"0100")
    path.write_bytes(data + values.astype(f"{order}u{bytes_each}").tobytes())


WAYS: dict[str, Callable[[Path], object]] = {
    **{
        f"icc{suffix}": lambda path, suffix=suffix: saved(
            path, ADOBE, power(ADOBE_GAMMA), icc_profile=icc(ADOBE, ADOBE_GAMMA), **LOSSLESS.get(suffix, {})
        )
        for suffix in (".jpg", ".png", ".webp", ".tif")
    },
    **{
        f"exif{suffix}": lambda path, suffix=suffix: saved(
            path, ADOBE, power(ADOBE_GAMMA), exif=exif_of_a_camera(), **LOSSLESS.get(suffix, {})
        )
        for suffix in (".jpg", ".webp", ".png")
    },
    "exif, 8 bits.tif": lambda path: tiff(path, ADOBE_8, "<"),
    "exif, 16 bits.tif": lambda path: tiff(path, ADOBE_16, "<"),
    "exif, 16 bits big endian.tif": lambda path: tiff(path, ADOBE_16, ">"),
    "wide icc, 16 bits.png": lambda path: png(
        path, tiled(power(1.8)(light_in(WIDE_D50)), 65535), chunk(b"iCCP", b"x\0\0" + zlib.compress(icc(WIDE_D50, 1.8)))
    ),
    "cicp p3.png": lambda path: png(path, P3_8, cicp(12, 13)),
    "cicp p3, 16 bits.png": lambda path: png(path, P3_16, cicp(12, 13)),
    "cicp pq.png": lambda path: png(path, PQ_16, cicp(9, 16)),
    "cicp hlg.png": lambda path: png(path, HLG_16, cicp(9, 18)),
    "cicp bt709.png": lambda path: png(path, tiled(bt709(light_in(SRGB)), 255), cicp(1, 1)),
    "cicp bt2020.png": lambda path: png(path, tiled(bt709(light_in(BT2020)), 65535), cicp(9, 14)),
    "cicp bt601.png": lambda path: png(path, tiled(bt709(light_in(BT601)), 255), cicp(6, 6)),
    "cicp linear.png": lambda path: png(path, tiled(light_in(SRGB), 65535), cicp(1, 8)),
    "cicp pq beside a profile.png": lambda path: png(
        path, PQ_16, cicp(9, 16), chunk(b"iCCP", b"x\0\0" + zlib.compress(icc(BT2020, 2.2)))
    ),
    "icc with cicp pq.png": lambda path: png(
        path, PQ_16, chunk(b"iCCP", b"x\0\0" + zlib.compress(icc(BT2020, 2.2, bytes([9, 16, 0, 1]))))
    ),
    "gama chrm adobe.png": lambda path: png(path, ADOBE_8, gama(1 / ADOBE_GAMMA), chrm(ADOBE)),
    "gama chrm adobe, 16 bits.png": lambda path: png(path, ADOBE_16, gama(1 / ADOBE_GAMMA), chrm(ADOBE)),
    "gama linear.png": lambda path: png(path, tiled(light_in(SRGB), 65535), gama(1.0)),
    "gama 1.8, white of D50.png": lambda path: png(
        path, tiled(power(1.8)(light_in(WIDE_D50)), 65535), gama(1 / 1.8), chrm(WIDE_D50)
    ),
    "chrm p3.png": lambda path: png(path, P3_8, chrm(P3)),
    "nclx p3.avif": lambda path: exact_avif(path, srgb(light_in(P3)), 8, 12, 13),
    "nclx bt2020.avif": lambda path: exact_avif(path, bt709(light_in(BT2020)), 10, 9, 1),
    "nclx pq.avif": lambda path: exact_avif(path, pq(light_in(BT2020)), 10, 9, 16),
    "nclx hlg.avif": lambda path: exact_avif(path, hlg(light_in(BT2020)), 12, 9, 18),
    "sequence header p3.avif": lambda path: [exact_avif(path, srgb(light_in(P3)), 8, 12, 13), without_nclx(path)],
    "sequence header pq.avif": lambda path: [exact_avif(path, pq(light_in(BT2020)), 12, 9, 16), without_nclx(path)],
    "embedded.bmp": lambda path: bmp(path, P3_22, b"DEBM", profile=icc(P3, 2.2)),
    "numbers p3.tif": lambda path: tagged_tiff(path, P3_8, numbers(P3)),
    "numbers adobe.tif": lambda path: tagged_tiff(path, ADOBE_8, numbers(ADOBE)),
    "numbers and a function.tif": lambda path: tagged_tiff(path, P3_22, numbers(P3) | transfer_function(2.2, 3)),
    "function linear.tif": lambda path: tagged_tiff(path, tiled(light_in(SRGB), 255), transfer_function(1.0)),
    "function of 16 values.tif": lambda path: tagged_tiff(
        path, tiled(power(1.8)(light_in(SRGB)), 255), transfer_function(1.8, count=16)
    ),
    "exif numbers p3.png": lambda path: saved(path, P3, srgb, exif=camera_exif(P3, 65535)),
    "exif numbers adobe.webp": lambda path: saved(
        path, ADOBE, power(ADOBE_GAMMA), exif=camera_exif(ADOBE, 65535), **LOSSLESS[".webp"]
    ),
    "exif numbers and gamma.png": lambda path: saved(path, P3, power(1.8), exif=camera_exif(P3, 65535, 1.8)),
    "exif numbers adobe.jpg": lambda path: saved(
        path, ADOBE, power(ADOBE_GAMMA), exif=camera_exif(ADOBE, 65535), **LOSSLESS[".jpg"]
    ),
    "exif colour space 2.jpg": lambda path: saved(
        path, ADOBE, power(ADOBE_GAMMA), exif=camera_exif(SRGB, 2), **LOSSLESS[".jpg"]
    ),
    "icc p3.heic": lambda path: path.write_bytes(HEIC["icc_p3"].read_bytes()),
    "nclx p3.heic": lambda path: path.write_bytes(HEIC["display_p3"].read_bytes()),
    "nclx pq.heic": lambda path: path.write_bytes(HEIC["hdr_pq"].read_bytes()),
}  # fmt: skip
"""A container and a way to state the colours -> what writes it."""


@pytest.mark.parametrize("name", WAYS)
def test_patches_come_back_in_every_container_and_way_to_state_the_colours(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    WAYS[name](path)
    assert difference(path) <= 3
    info = inspect_image(path)
    assert info.colours == NAMES.get(name, info.colours) != ""
    assert info.is_hdr == ("pq" in name or "hlg" in name)
    header = inspect_header(path)
    assert (header.colours, header.is_hdr, header.reading) == (
        info.colours,
        info.is_hdr,
        info.reading,
    )
    assert bool(info.reading) == (not name.startswith(("icc.", "icc p3"))), (
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
    "the space srgb.bmp": lambda path: bmp(path, P3_8, b"BGRs", gamma=1.0),
    "calibrated by zeros.bmp": lambda path: bmp(path, P3_8, bytes(4)),
    "numbers of srgb.tif": lambda path: tagged_tiff(path, P3_8, numbers(SRGB)),
    "function of 2.2.tif": lambda path: tagged_tiff(path, P3_8, numbers(SRGB) | transfer_function(2.2)),
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
    assert (info.colours, info.is_hdr, info.reading) == ("", False, "")
    with Image.open(path) as image:
        assert open_image(path).tobytes() == image.convert("RGB").tobytes()


NAMES = {
    "cicp p3.png": "Display P3",
    "cicp pq.png": "HDR (PQ)",
    "cicp hlg.png": "HDR (HLG)",
    "cicp bt709.png": "BT.709",
    "cicp bt601.png": "BT.601",
    "gama chrm adobe.png": "Adobe RGB",
    "gama linear.png": "gamma 1",
    "exif.jpg": "Adobe RGB",
    "nclx p3.avif": "Display P3",
    "nclx pq.heic": "HDR (PQ)",
    "icc.jpg": "Test",
    "sequence header pq.avif": "HDR (PQ)",
    "embedded.bmp": "Test",
    "numbers p3.tif": "Display P3",
    "numbers and a function.tif": "the primaries of its tags",
    "exif colour space 2.jpg": "Adobe RGB",
}


def inverse_pq(value: numpy.ndarray) -> numpy.ndarray:
    root = value ** (1 / 78.84375)
    return (
        (numpy.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root))
        ** (1 / 0.1593017578125)
        * 10000
        / 203
    )


def levels_of(
    unit: numpy.ndarray, space: tuple[float, ...], light_of: Callable
) -> numpy.ndarray:
    """What values in [0, 1] of other colours are in levels of sRGB."""
    to_srgb = numpy.linalg.inv(xyz_of(*SRGB)) @ adapted(xyz_of(*space), SRGB[6:])
    return srgb((light_of(unit) @ to_srgb.T).clip(0, 1)) * 255


LOSSY: dict[str, dict] = {
    "a.jpg": {"quality": 80},
    "a.webp": {"quality": 80},
    "a.avif": {"quality": 60},
    "b.avif": {"quality": 100, "subsampling": "4:4:4"},
}


@pytest.mark.parametrize("name", LOSSY)
def test_what_is_lost_is_lost_by_the_codec(tmp_path: Path, name: str) -> None:
    """Of a noisy file, each pixel is what the formulas of this test make of the pixels
    that Pillow decodes. (Of the patches, AVIF and HEIC of 8 bits lose 3.7 levels as
    Display P3, 10 bits of PQ 4.8, 12 bits 0.3: the darkest channel of a strong colour
    is the difference of large numbers, and YCbCr is rounded.)"""
    path = tmp_path / name
    noisy = P3_22.astype(int) + numpy.random.default_rng(0).integers(
        -20, 20, P3_22.shape
    )
    image = Image.fromarray(noisy.clip(0, 255).astype(numpy.uint8))
    image.save(path, icc_profile=icc(P3, 2.2), **LOSSY[name])
    with Image.open(path) as decoded:
        wanted = levels_of(
            numpy.asarray(decoded.convert("RGB")) / 255, P3, lambda value: value**2.2
        )
    off = abs(numpy.asarray(open_image(path)) - wanted)
    assert off.mean() < 0.5 and off.max() <= 3, (
        "lcms rounds to 16 bits between the two curves"
    )


@pytest.mark.parametrize(("bits", "sampling"), [(10, "420"), (12, "444")])
def test_what_is_lost_of_hdr_is_lost_by_the_codec(
    tmp_path: Path, bits: int, sampling: str
) -> None:
    codec = pytest.importorskip("imagecodecs")
    path, top = tmp_path / "a.avif", 2**bits - 1
    codes = {"primaries": 9, "transfer": 16, "matrix": 9, "pixelformat": sampling}
    data = codec.avif_encode(
        tiled(pq(light_in(BT2020)), top), level=60, bitspersample=bits, **codes
    )
    path.write_bytes(data)
    wanted = levels_of(codec.avif_decode(data) / top, BT2020, inverse_pq)
    assert abs(numpy.asarray(open_image(path)) - wanted).max() <= 1


REFUSED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "narrow.png": ("black is 16 and white 235", lambda path: png(path, P3_8, cicp(12, 13, 0))),
    "primaries.png": ("the colours H.273 8/13", lambda path: png(path, P3_8, cicp(8, 13))),
    "curve.avif": ("the colours H.273 12/17", lambda path: avif(path, P3_8, 12, 17)),
    "endpoints.bmp": ("by endpoints", lambda path: bmp(path, P3_8, bytes(4), tuple(xyz_of(*SRGB).T.ravel()), 0.45455)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_colours_that_no_camera_writes_are_refused_by_name(
    tmp_path: Path, name: str
) -> None:
    words, write = REFUSED[name]
    path = tmp_path / name
    write(path)
    for read in (open_image, inspect_image, inspect_header):
        with pytest.raises(images.ImageError, match=rf"{words}.*{tmp_path}/[a-z.]+png"):
            read(path)
    assert images.image_reading(path) == ""


def test_codes_that_a_profile_overrules_refuse_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header of a film beside a profile, and a tag `cicp` that is not of HDR."""
    profile = icc(P3, 2.2, bytes([12, 13, 0, 0]))
    for name in ("a.avif", "a.png"):
        Image.fromarray(P3_22).save(tmp_path / name, icc_profile=profile)

    def refuse(_: object) -> None:
        raise Unread("an AVIF that has the header of a film, and no nclx")

    monkeypatch.setattr(colours, "codes_of_avif", refuse)
    for name in ("a.avif", "a.png"):
        assert inspect_header(tmp_path / name).colours == "Test"
    Image.fromarray(P3_22).save(tmp_path / "b.avif")
    with pytest.raises(images.ImageError, match="the header of a film"):
        inspect_header(tmp_path / "b.avif")


def test_short_sequence_headers_are_read_and_long_ones_refused(tmp_path: Path) -> None:
    """The header of a still picture is short; a long one has the tools of a film."""
    codec = pytest.importorskip("imagecodecs")
    path = tmp_path / "a.avif"
    codes = {"primaries": 12, "transfer": 16, "matrix": 1, "pixelformat": "420"}
    for frames in ([P3_8], [P3_8, P3_8[::-1]]):
        path.write_bytes(codec.avif_encode(numpy.stack(frames), level=90, **codes))
        without_nclx(path, len(frames))
        with path.open("rb") as file:
            if len(frames) == 1:
                assert avif_header.codes_of_avif(file) == (12, 16)
            else:
                with pytest.raises(Unread, match="the header of a film, and no nclx"):
                    avif_header.codes_of_avif(file)


def with_property(data: bytes, box: bytes) -> bytes:
    """An AVIF of one item, as imagecodecs writes it, with one more property of that
    item."""
    file = bytearray(data)

    def grow(name: bytes, count: int) -> int:
        at = file.index(name) - 4
        (length,) = struct.unpack_from(">I", file, at)
        struct.pack_into(">I", file, at, length + count)
        return at

    at, number = file.index(b"ipco") + 4, 1
    while file[at + 4 : at + 8] != b"ipma":
        at, number = at + struct.unpack_from(">I", file, at)[0], number + 1
    associations = grow(b"ipma", 1)
    file[associations + 18] += 1
    file.insert(
        associations + struct.unpack_from(">I", file, associations)[0] - 1,
        0x80 | number,
    )
    file[associations:associations] = box
    grow(b"ipco", len(box))
    for name in (b"iprp", b"meta"):
        grow(name, len(box) + 1)
    extent = file.index(b"iloc") + 4 + 4 + 2 + 2 + 2 + 2 + 2
    struct.pack_into(
        ">I", file, extent, struct.unpack_from(">I", file, extent)[0] + len(box) + 1
    )
    return bytes(file)


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize(
    ("box", "turn"),
    [
        (b"irot\3", lambda values: numpy.rot90(values, 1)),
        (b"irot\1", lambda values: numpy.rot90(values, -1)),
        (b"imir\1", lambda values: values[:, ::-1]),
    ],
)
def test_avif_is_turned_once_by_either_decoder(
    tmp_path: Path, bits: int, box: bytes, turn: Callable
) -> None:
    """Pillow decodes 8 bits, imagecodecs 10; neither turns the picture."""
    codec = pytest.importorskip("imagecodecs")
    stored = numpy.ascontiguousarray(turn(tiled(srgb(light_in(P3)), 2**bits - 1)))
    codes = {"primaries": 12, "transfer": 13, "matrix": 0, "pixelformat": "444"}
    plain = codec.avif_encode(stored, bitspersample=bits, **codes)
    (tmp_path / "a.avif").write_bytes(with_property(plain, struct.pack(">I", 9) + box))
    assert images.image_size(tmp_path / "a.avif") == (4 * SIDE, 2 * SIDE)
    assert difference(tmp_path / "a.avif") <= 1


def test_without_its_decoder_an_avif_of_hdr_names_the_package_and_others_have_8_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file with other pixels has other cached latents."""
    path = tmp_path / "a.avif"
    exact_avif(path, srgb(light_in(P3)), 10, 12, 13)
    reading = images.image_reading(path)
    exact_avif(tmp_path / "hdr.avif", pq(light_in(BT2020)), 10, 9, 16)
    assert inspect_header(tmp_path / "hdr.avif").is_hdr
    monkeypatch.setattr(avif_header, "find_spec", lambda _: None)
    assert reading == images.image_reading(path) + " 16 bits"
    with pytest.raises(
        images.ImageError,
        match=r"is HDR \(PQ\), of which Pillow gives 8 bits, too few for its range\. Install the package "
        r"'imagecodecs' \(extra 'hdr'\): .*pip install",
    ):
        images.image_size(tmp_path / "hdr.avif")


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


def test_light_above_white_is_clipped_and_hlg_at_three_quarters_is_white(
    tmp_path: Path,
) -> None:
    """ITU-R BT.2408, table 1: the white of a page is 58 % of PQ and 75 % of HLG."""
    for name, codes, levels in (
        ("pq", (9, 16), (0.5807, 0.9)),
        ("hlg", (9, 18), (0.75, 1.0)),
    ):
        path = tmp_path / f"{name}.png"
        png(
            path,
            (numpy.array([[[value] * 3 for value in levels]]) * 65535).astype(
                numpy.uint16
            ),
            cicp(*codes),
        )
        near, above = (open_image(path).getpixel((x, 0)) for x in (0, 1))
        assert min(near) >= 254 and above == (255, 255, 255)


def test_opacity_and_rotation_stay(tmp_path: Path) -> None:
    rgba = numpy.dstack([P3_8, numpy.full(P3_8.shape[:2], 255, numpy.uint8)])
    rgba[:SIDE, :SIDE, 3] = 0
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgba).save(tmp_path / "a.png", exif=exif)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:33] + cicp(12, 13) + whole[33:])
    image = open_image(tmp_path / "a.png", channels=4)
    assert (
        image.size == (2 * SIDE, 4 * SIDE) and image.getpixel((2 * SIDE - 1, 0))[3] == 0
    )
    assert image.getpixel((0, 0))[:3] == pytest.approx(PATCHES[4], abs=1)
    assert image.getpixel((2 * SIDE - 1, SIDE))[:3] == pytest.approx(PATCHES[1], abs=1)


def test_16_bits_with_a_profile_are_as_lcms_has_8(tmp_path: Path) -> None:
    """Curves as tables and functions, against the library that converts files of 8
    bits."""
    from PIL import ImageCms

    tabled = icc(P3, 2.2)
    numbers = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    curve = (
        b"para"
        + bytes(4)
        + struct.pack(">HH5i", 3, 0, *(round(each * 65536) for each in numbers))
    )
    table = (
        b"curv"
        + bytes(4)
        + struct.pack(">I9H", 9, *(round(65535 * (each / 8) ** 2) for each in range(9)))
    )
    for kind in (curve, table):
        profile = bytearray(tabled) + kind
        for name in (b"rTRC", b"gTRC", b"bTRC"):
            struct.pack_into(
                ">II", profile, profile.index(name) + 4, len(tabled), len(kind)
            )
        struct.pack_into(">I", profile, 0, len(profile))
        assert ImageCms.ImageCmsProfile(BytesIO(bytes(profile)))
        chunk_of_it = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(profile)))
        png(tmp_path / "a.png", P3_8, chunk_of_it)
        png(tmp_path / "b.png", P3_8.astype(numpy.uint16) * 257, chunk_of_it)
        eight, sixteen = (
            numpy.asarray(open_image(tmp_path / name)).astype(int)
            for name in ("a.png", "b.png")
        )
        assert abs(eight - sixteen).max() <= 2
        assert images.image_reading(tmp_path / "b.png") and not images.image_reading(
            tmp_path / "a.png"
        )


def test_grey_of_a_linear_png_is_brighter(tmp_path: Path) -> None:
    Image.fromarray(numpy.full((2, 2), 128, numpy.uint8)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:33] + gama(1.0) + whole[33:])
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (188, 188, 188)


@pytest.mark.parametrize(
    ("suffix", "gamma", "first", "top"),
    [("png", 1.0, 1, 65535), ("webp", 1.8, 16, 255)],
)
def test_a_profile_of_grey_counts_in_16_bits_and_in_webp_which_has_no_grey(
    tmp_path: Path, suffix: str, gamma: float, first: int, top: int
) -> None:
    """8 bits of linear light have 8 steps for the darkest 20 levels."""
    path, levels = tmp_path / f"a.{suffix}", numpy.arange(first, 256)[None]
    grey = numpy.rint(linear(levels / 255) ** (1 / gamma) * top)
    stored = grey.astype(numpy.uint8 if top == 255 else numpy.uint16)
    Image.fromarray(stored).save(path, icc_profile=grey_icc(gamma), lossless=True)
    found = numpy.asarray(open_image(path)).astype(int)
    assert abs(found - levels[..., None]).max() <= 1
    info = inspect_image(path)
    assert (info.colours, info.notes, info.reading) == ("Test", (), "profile 1")


@pytest.mark.parametrize("suffix", ["avif", "png"])
def test_damaged_headers_are_as_if_nothing_was_said(
    tmp_path: Path, suffix: str
) -> None:
    """The parsers end, whatever the lengths in a file say."""
    path = tmp_path / f"a.{suffix}"
    if suffix == "avif":
        avif(path, P3_8, 12, 13)
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
            assert isinstance(colours.colours_of(opened).name, str)


def test_the_associations_of_another_item_do_not_count(tmp_path: Path) -> None:
    """Of a file with several items the colours of the primary one are asked: 16-bit
    numbers, 15-bit indices, a box whose length has 64 bits. It is grey: one channel."""
    colr = [
        struct.pack(">I4s4s2HHB", 19, b"colr", b"nclx", p, 13, 0, 128) for p in (9, 12)
    ]
    ipma = (
        b"\0\0\0\1"
        + struct.pack(">I", 2)
        + struct.pack(">HBH", 1, 1, 0x8001)
        + struct.pack(">HB2H", 7, 2, 0x8002, 0x8003)
    )
    pixi = struct.pack(">I4sI2B", 14, b"pixi", 0, 1, 10)
    pitm = struct.pack(">I4sIH", 14, b"pitm", 0, 7)
    ipco = struct.pack(">I4s", 8 + 38 + 14, b"ipco") + b"".join(colr) + pixi
    iprp_content = ipco + struct.pack(">I4s", 8 + len(ipma), b"ipma") + ipma
    iprp = struct.pack(">I4sQ", 1, b"iprp", 16 + len(iprp_content)) + iprp_content
    meta = bytes(4) + pitm + iprp
    path = tmp_path / "a.avif"
    path.write_bytes(
        struct.pack(">I4s", 16, b"ftyp")
        + b"avifavif"
        + struct.pack(">I4s", 8 + len(meta), b"meta")
        + meta
    )
    with path.open("rb") as file:
        assert avif_header.codes_of_avif(file) == (12, 13)
        assert avif_header.bits_of_avif(file) == 10


FAULTS = {
    "grey.png": (grey_icc(2.2), "is for grey, its pixels are RGB"),
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


def test_a_profile_in_another_file_is_named(tmp_path: Path) -> None:
    bmp(tmp_path / "a.bmp", P3_8, b"KNIL", profile=b"C:\\p3.icc\0")
    assert inspect_image(tmp_path / "a.bmp").notes == (
        "its colour profile is in another file: taken as sRGB",
    )


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


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_linear_grey_of_8_bits_is_not_left_to_lcms(tmp_path: Path, suffix: str) -> None:
    """Which is 10 levels off for the value 2; profiles of 1.8 and 2.2 stay with it, to
    the bit."""
    values = numpy.arange(256, dtype=numpy.uint8)[None].repeat(8, 0)
    path = tmp_path / f"a.{suffix}"
    options = LOSSLESS.get(f".{suffix}", {})
    Image.fromarray(values).save(path, icc_profile=grey_icc(1.0), **options)
    with Image.open(path) as image:
        wanted = srgb(numpy.asarray(image) / 255) * 255
    assert abs(numpy.asarray(open_image(path))[..., 0] - wanted).max() <= 1
    assert inspect_image(path).reading == "profile 1"
    Image.fromarray(values).save(path, icc_profile=grey_icc(1.8), **options)
    assert inspect_image(path).reading == ""
