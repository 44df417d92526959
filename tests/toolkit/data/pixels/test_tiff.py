"""TIFF of the kinds that Pillow reads wrongly or not at all. The files are written by
hand, and a table of them by tifffile, which also says what is in them."""

from __future__ import annotations

import itertools
import struct
import zlib
from pathlib import Path

import numpy
import pytest
from PIL import Image

from toolkit.data.pixels.images import (
    ImageError,
    image_size,
    inspect_header,
    inspect_image,
    open_image,
)
from toolkit.data.pixels.tiff import read_header

HEIGHT, WIDTH = 37, 45
RNG = numpy.random.default_rng(0)
RGB_16 = RNG.integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(numpy.uint16)
GREY_16 = RGB_16[..., 0]
GREY_12 = GREY_16 >> 4


def packed(values: numpy.ndarray) -> bytes:
    """Rows of 12 bits for each value, the first the high ones; each row begins with a
    byte."""
    rows = []
    for row in values:
        bits = "".join(f"{value:012b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        rows.append(int(bits, 2).to_bytes(len(bits) // 8, "big"))
    return b"".join(rows)


def write(path: Path, strips: list[bytes], order: str = "<", **tags: object) -> None:
    """A TIFF with these strips. tags: `t258=(16, 16)` and the like, behind those that
    are always there."""
    given = {
        256: (WIDTH,),
        257: (HEIGHT,),
        258: (16,),
        259: (1,),
        262: (1,),
        277: (1,),
        278: (HEIGHT,),
        284: (1,),
    }
    given |= {int(name[1:]): value for name, value in tags.items()}
    given |= {279: tuple(map(len, strips)), 273: tuple(strips)}
    at = 8 + 2 + 12 * len(given) + 4
    extra = b""
    start = at + 400
    entries = b""
    for tag, values in sorted(given.items()):
        if tag == 273:
            values = tuple(
                start + sum(map(len, strips[:index])) for index in range(len(strips))
            )
        kind = 4 if tag in (273, 279) else 3
        raw = struct.pack(order + ("I" if kind == 4 else "H") * len(values), *values)
        where = (
            raw.ljust(4, b"\0")
            if len(raw) <= 4
            else struct.pack(order + "I", at + len(extra))
        )
        extra += b"" if len(raw) <= 4 else raw
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + where
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        order + "HIH", 42, 8, len(given)
    )
    path.write_bytes(
        head + entries + bytes(4) + extra.ljust(400, b"\0") + b"".join(strips)
    )


def planes(values: numpy.ndarray, order: str, rows: int = HEIGHT) -> list[bytes]:
    channels = values.transpose(2, 0, 1)
    return [
        each[top : top + rows].astype(order + "u2").tobytes()
        for each in channels
        for top in range(0, HEIGHT, rows)
    ]


def levels(path: Path) -> numpy.ndarray:
    assert (
        inspect_image(path).size
        == inspect_header(path).size
        == image_size(path)
        == open_image(path).size
    )
    return numpy.asarray(open_image(path)).astype(float)


def worst(found: numpy.ndarray, wanted: numpy.ndarray) -> float:
    return float(abs(found - wanted).max())


@pytest.mark.parametrize(("order", "rows"), itertools.product("<>", (HEIGHT, 10)))
def test_channels_of_16_bits_one_after_the_other(
    tmp_path: Path, order: str, rows: int
) -> None:
    path = tmp_path / "a.tif"
    write(
        path,
        planes(RGB_16, order, rows),
        order,
        t258=(16,) * 3,
        t262=(2,),
        t277=(3,),
        t278=(rows,),
        t284=(2,),
    )
    assert worst(levels(path), RGB_16 / 257) <= 0.51
    assert inspect_image(path).reading, "latents of the noise are not used"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_channels_one_after_the_other_are_turned_upright(
    tmp_path: Path, orientation: int
) -> None:
    path, plain = tmp_path / "a.tif", tmp_path / "b.tif"
    tags = {"t258": (16,) * 3, "t262": (2,), "t277": (3,), "t274": (orientation,)}
    write(path, planes(RGB_16, "<"), t284=(2,), **tags)
    write(plain, [RGB_16.astype("<u2").tobytes()], **tags)
    assert worst(levels(path), levels(plain)) <= 1


def test_opacity_and_cmyk_in_channels_one_after_the_other(tmp_path: Path) -> None:
    four = numpy.dstack([RGB_16, numpy.full((HEIGHT, WIDTH), 32768, numpy.uint16)])
    write(
        tmp_path / "a.tif",
        planes(four, "<"),
        t258=(16,) * 4,
        t262=(2,),
        t277=(4,),
        t284=(2,),
        t338=(2,),
    )
    assert worst(levels(tmp_path / "a.tif"), RGB_16 / 257 / 2 + 127.5) <= 1.1
    half = numpy.dstack([RGB_16 // 2, four[..., 3]])
    write(
        tmp_path / "b.tif",
        planes(half, "<"),
        t258=(16,) * 4,
        t262=(2,),
        t277=(4,),
        t284=(2,),
        t338=(1,),
    )
    assert worst(levels(tmp_path / "b.tif"), RGB_16 / 257 / 2 + 127.5) <= 1.6
    write(
        tmp_path / "c.tif",
        planes(four, "<"),
        t258=(16,) * 4,
        t262=(5,),
        t277=(4,),
        t284=(2,),
    )
    assert (
        worst(levels(tmp_path / "c.tif"), (255 - RGB_16 / 257) * (1 - 32768 / 65535))
        <= 1.6
    )


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [1, 8])
def test_grey_of_16_bits_with_white_as_zero(
    tmp_path: Path, order: str, compression: int
) -> None:
    path = tmp_path / "a.tif"
    strip = GREY_16.astype(order + "u2").tobytes()
    write(
        path,
        [zlib.compress(strip) if compression == 8 else strip],
        order,
        t262=(0,),
        t259=(compression,),
    )
    assert worst(levels(path), (255 - GREY_16 / 257)[..., None]) <= 0.51
    assert inspect_image(path).reading


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("white", [0, 1])
def test_grey_of_12_bits(
    tmp_path: Path, order: str, compression: int, white: int
) -> None:
    path = tmp_path / "a.tif"
    strip = packed(GREY_12)
    tags = {"t258": (12,), "t259": (compression,), "t262": (white,)}
    write(path, [zlib.compress(strip) if compression == 8 else strip], order, **tags)
    grey = GREY_12 / 4095 * 255
    assert worst(levels(path), (grey if white else 255 - grey)[..., None]) <= 0.51


def test_a_short_file_is_refused_before_training(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write(path, planes(RGB_16, "<"), t258=(16,) * 3, t262=(2,), t277=(3,), t284=(2,))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ImageError, match="truncated"):
        inspect_image(path)


@pytest.mark.parametrize("tag", ["t278", "t256", "t257", "t277", "t273"])
@pytest.mark.parametrize("value", [0, 1, 65535])
def test_headers_that_do_not_fit_the_file_raise_image_errors(
    tmp_path: Path, tag: str, value: int
) -> None:
    path = tmp_path / "a.tif"
    strips = planes(RGB_16, "<")
    tags = {"t258": (16,) * 3, "t262": (2,), "t277": (3,), "t284": (2,)} | (
        {tag: (value,)} if tag != "t273" else {}
    )
    write(path, strips[: value if tag == "t273" else 3] or [b""], **tags)
    try:
        assert open_image(path).mode == "RGB"
    except ImageError as error:
        assert error.reason


KINDS = {
    "3 x float32": {"t258": (32,) * 3, "t262": (2,), "t277": (3,), "t339": (3,) * 3},
    "3 x float16": {"t258": (16,) * 3, "t262": (2,), "t277": (3,), "t339": (3,) * 3},
    "3 x uint10": {"t258": (10,) * 3, "t262": (2,), "t277": (3,)},
    "2 x uint16": {"t258": (16,) * 2, "t262": (1,), "t277": (2,), "t338": (2,)},
    "1 x int16": {"t339": (2,)},
    "1 x int8": {"t258": (8,), "t339": (2,)},
    "3 x uint8, WebP compression": {
        "t258": (8,) * 3,
        "t262": (2,),
        "t277": (3,),
        "t259": (50001,),
    },
    "3 x uint8, JPEG 2000 compression": {
        "t258": (8,) * 3,
        "t262": (2,),
        "t277": (3,),
        "t259": (34712,),
    },
    "3 x uint8, JPEG XL compression": {
        "t258": (8,) * 3,
        "t262": (2,),
        "t277": (3,),
        "t259": (50002,),
    },
    "3 x uint12, JPEG compression": {
        "t258": (12,) * 3,
        "t262": (6,),
        "t277": (3,),
        "t259": (7,),
    },
    "1 x uint16, unknown (4711) compression": {"t259": (4711,)},
    "5 x uint8": {"t258": (8,) * 5, "t262": (5,), "t277": (5,), "t338": (2,)},
    "uint of 5, 6, 5 bits": {"t258": (5, 6, 5), "t262": (2,), "t277": (3,)},
    "3 x uint8, YCbCr with fewer colours than pixels": {
        "t258": (8,) * 3,
        "t262": (6,),
        "t277": (3,),
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_valid_file_of_a_kind_that_is_not_read_is_called_that(
    tmp_path: Path, kind: str, capfd
) -> None:
    path = tmp_path / "a.tif"
    write(path, [bytes(40_000)], **KINDS[kind])
    for read in (inspect_image, inspect_header, open_image, image_size):
        with pytest.raises(ImageError) as refused:
            read(path)
        assert refused.value.reason.startswith(
            f"is a TIFF of {kind}, which is not read. Save it as"
        )
        assert "damaged" not in refused.value.reason
    assert capfd.readouterr() == ("", ""), "nothing of libtiff on the terminal"


def with_second_page(path: Path, first: int, second: int) -> None:
    """A page of 8-bit RGB, then a small one. first, second: their tags 254."""
    rgb = (RGB_16 >> 8).astype(numpy.uint8)
    write(path, [rgb.tobytes()], t254=(first,), t258=(8,) * 3, t262=(2,), t277=(3,))
    page = bytearray(path.read_bytes())
    number_of_tags = struct.unpack_from("<H", page, 8)[0]
    struct.pack_into("<I", page, 10 + 12 * number_of_tags, len(page))
    tags = [
        (254, second),
        (256, 1),
        (257, 1),
        (258, 8),
        (259, 1),
        (262, 4),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, 1),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(bytes(page) + struct.pack("<H", len(tags)) + entries + bytes(4))


@pytest.mark.parametrize("kind", [1, 4, 5])
def test_a_thumbnail_or_a_mask_behind_the_picture_is_no_page(
    tmp_path: Path, kind: int
) -> None:
    """Also one of a kind that Pillow does not open."""
    path = tmp_path / "a.tif"
    with_second_page(path, 0, kind)
    assert worst(levels(path), RGB_16 >> 8) == 0


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (2, 2)])
def test_pages_are_refused_and_a_thumbnail_before_the_picture(
    tmp_path: Path, first: int, second: int
) -> None:
    path = tmp_path / "a.tif"
    with_second_page(path, first, second)
    with pytest.raises(ImageError, match=r"holds 2 pages\. Save one of them as PNG"):
        open_image(path)


def test_a_torn_header_is_damage() -> None:
    import io

    assert read_header(io.BytesIO(b"II*\0\x08\0\0\0\xff")) is None


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (
            "a JPEG of 12 bits",
            b"\xff\xd8\xff\xe0\0\x04ab\xff\xc1\0\x11\x0c\0\x10\0\x10\3" + bytes(9),
        ),
        ("a lossless JPEG", b"\xff\xd8\xff\xc3\0\x11\x08\0\x10\0\x10\3" + bytes(9)),
        ("a JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40)),
        ("an OpenEXR image", b"v/1\x01" + bytes(40)),
        ("a Photoshop document", b"8BPS" + bytes(40)),
    ],
)
def test_other_formats_are_called_by_their_name(
    tmp_path: Path, kind: str, data: bytes
) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(ImageError, match=f"is {kind}, which is not read"):
        open_image(tmp_path / "a.jpg")


# ---------------------------------------------------------------- against tifffile


def combinations():
    """Bits, planes, compression, photometric and byte order."""
    kinds = (
        ("rgb", 3, None),
        ("rgb", 4, "unassalpha"),
        ("rgb", 4, "assocalpha"),
        ("separated", 4, None),
    )
    for (
        photometric,
        count,
        extra,
    ), planar, compression, bits, order, tile in itertools.product(
        kinds,
        ("contig", "separate"),
        (None, "lzw", "zlib", "packbits", "zstd"),
        (8, 16),
        "<>",
        (None, (16, 32)),
    ):
        yield photometric, count, extra, planar, compression, bits, order, tile
    for photometric, compression, bits, order in itertools.product(
        ("minisblack", "miniswhite"), (None, "lzw", "zlib"), (1, 2, 4, 8, 12, 16), "<>"
    ):
        if bits in (8, 16) or compression is None:
            yield photometric, 1, None, "contig", compression, bits, order, None


def shown(
    values: numpy.ndarray, photometric: str, extra: str | None, top: int
) -> numpy.ndarray:
    """The pixels [H, W, 3], on white, in levels of 255."""
    unit = values / top
    if photometric == "miniswhite":
        unit = 1 - unit
    if unit.ndim == 2:
        unit = unit[..., None]
    if photometric == "separated":
        unit = (1 - unit[..., :3]) * (1 - unit[..., 3:])
    elif extra == "unassalpha":
        unit = unit[..., :3] * unit[..., 3:] + 1 - unit[..., 3:]
    elif extra == "assocalpha":
        unit = unit[..., :3] + 1 - unit[..., 3:]
    return unit.clip(0, 1) * 255


def test_the_table_of_headers_is_read_as_tifffile_reads_it(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    wrong, read = list[str](), 0
    for case in combinations():
        photometric, count, extra, planar, compression, bits, order, tile = case
        top = 2**bits - 1
        values = RNG.integers(0, top + 1, (HEIGHT, WIDTH, count)).astype(
            numpy.uint8 if bits <= 8 else numpy.uint16
        )
        if extra == "assocalpha":
            values[..., :3] = (
                values[..., :3].astype(float) * values[..., 3:] / top
            ).astype(values.dtype)
        stored = (
            values[..., 0]
            if count == 1
            else values.transpose(2, 0, 1).copy()
            if planar == "separate"
            else values
        )
        options = {
            "photometric": photometric,
            "compression": compression,
            "byteorder": order,
            "tile": tile,
        }
        options |= {"planarconfig": planar} if count > 1 else {}
        options |= {"extrasamples": [extra]} if extra else {}
        options |= {"bitspersample": bits} if bits not in (8, 16) else {}
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, stored, **options)
        theirs = tifffile.imread(path)
        theirs = theirs.transpose(1, 2, 0) if planar == "separate" else theirs
        try:
            difference = worst(levels(path), shown(theirs, photometric, extra, top))
        except ImageError as error:
            difference = 0.0 if "which is not read" in error.reason else 999.0
        read += 1
        if difference > 3:
            wrong.append(f"{case}: {difference:.0f}")
    assert not wrong and read > 300


def test_pillow_still_reads_planes_wrongly(tmp_path: Path) -> None:
    """The day this fails, `tiff.read_planes` can go."""
    path = tmp_path / "a.tif"
    write(path, planes(RGB_16, "<"), t258=(16,) * 3, t262=(2,), t277=(3,), t284=(2,))
    with Image.open(path) as image:
        assert worst(numpy.asarray(image).astype(float), RGB_16 / 257) > 100
