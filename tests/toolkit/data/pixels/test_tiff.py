"""TIFF of the kinds that Pillow reads wrongly or not at all. The files are written by
hand, and a table of them by tifffile, which also says what is in them."""

from __future__ import annotations

import itertools
import struct
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

HEIGHT, WIDTH = 37, 45
RNG = numpy.random.default_rng(0)
RGB_16 = RNG.integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(numpy.uint16)


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


RGB = {"t262": (2,), "t277": (3,)}
EIGHT = {**RGB, "t258": (8,) * 3}
NOT_OPENED = "a TIFF that is damaged, or not grey, RGB or CMYK of 8 or 16 bits"
REFUSED = {
    "a TIFF of signed values of 16 bits": {"t339": (2,)},
    "a TIFF of signed values of 8 bits": {"t258": (8,), "t339": (2,)},
    "a TIFF of signed values of 32 bits": {"t258": (32,), "t339": (2,)},
    "a TIFF of floating-point values of 32 bits": {"t258": (32,), "t339": (3,)},
    "a TIFF of values of 12 bits": {"t258": (12,)},
    "a TIFF of values of 32 bits": {"t258": (32,)},
    "a TIFF of 16 bits with white as zero": {"t262": (0,)},
    "a TIFF of Lab": {**EIGHT, "t262": (8,)},
    "a TIFF whose channels are stored one after the other": {**RGB, "t258": (16,) * 3, "t284": (2,)},
    "a TIFF whose channels are stored one": {"t258": (8,) * 4, "t262": (2,), "t277": (4,), "t284": (2,), "t338": (1,)},
    "a TIFF with WebP compression": {**EIGHT, "t259": (50001,)},
    "a TIFF of YCbCr with fewer colours than pixels": {**EIGHT, "t262": (6,)},
    f"{NOT_OPENED}, which": {"t258": (32,) * 3, **RGB, "t339": (3,) * 3},
    f"{NOT_OPENED}, which is": {**EIGHT, "t259": (50002,)},
    f"{NOT_OPENED}, which is not": {"t258": (8,) * 5, "t262": (5,), "t277": (5,), "t338": (2,)},
}  # fmt: skip
"""The beginning of the reason -> the tags of a file."""


@pytest.mark.parametrize("kind", REFUSED)
def test_a_kind_that_pillow_does_not_read_rightly_is_refused_by_name(
    tmp_path: Path, kind: str, capfd
) -> None:
    path = tmp_path / "a b.tif"
    write(path, [bytes(40_000)], **REFUSED[kind])
    for read in (inspect_image, inspect_header, open_image, image_size):
        with pytest.raises(ImageError) as refused:
            read(path)
        assert refused.value.reason.startswith(f"is {kind}")
        assert refused.value.reason.endswith(
            "which is not read. Save it as sRGB PNG or JPEG"
        )
    assert capfd.readouterr() == ("", ""), "nothing of libtiff on the terminal"


def test_a_short_file_is_damaged(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", [RGB_16.tobytes()[:-1]], **RGB, t258=(16,) * 3)
    for read in (inspect_image, open_image):
        with pytest.raises(ImageError, match="truncated or damaged"):
            read(tmp_path / "a.tif")


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
        (None, "zlib"),
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
            read += 1
        except ImageError as error:
            difference = 0.0 if "which is not read" in error.reason else 999.0
        if difference > 3:
            wrong.append(f"{case}: {difference:.0f}")
    assert not wrong and read == 118


def test_pillow_still_reads_planes_wrongly(tmp_path: Path) -> None:
    """The day this fails, `tiff.refuse_misread` need not refuse them."""
    path = tmp_path / "a.tif"
    strips = [plane.astype("<u2").tobytes() for plane in RGB_16.transpose(2, 0, 1)]
    write(path, strips, **RGB, t258=(16,) * 3, t284=(2,))
    with Image.open(path) as image:
        assert worst(numpy.asarray(image).astype(float), RGB_16 / 257) > 100
