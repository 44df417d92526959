"""The header of an AVIF: colours and bits of its primary item. Pillow 13 gives neither.

`colours` calls `codes_of_avif`, `images` calls `bits_of_avif`. The pixels are decoded
by Pillow, those of HDR by imagecodecs.

Sources: ISO/IEC 14496-12 (boxes), ISO/IEC 23008-12 (items and their properties), AV1
Codec ISO Media File Format Binding, 2.3 (`av1C`), AV1 Bitstream and Decoding Process
Specification, 5.3 to 5.5 (sequence header).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from importlib.util import find_spec
from typing import IO

from toolkit.data.pixels.unread import Unread

PACKAGE = "imagecodecs"
"""Decodes all bits of an AVIF, of which Pillow gives 8: the extra `hdr`."""

Codes = tuple[int, int]
"""Primaries and transfer by ITU-T H.273."""

_MOST_BOXES = 1000
_MOST_META = 1 << 22
"""Bytes of the box `meta` that are read: those of a thousand tiles are some 40 kB."""

_SEQUENCE_HEADER = 1
_MOST_OF_ITEM = 256
"""Bytes of the primary item that are read: a sequence header comes first and has some
20."""


def is_hdr_decoder_installed() -> bool:
    """Whether the bits of HDR can be decoded. Does not import the decoder."""
    return find_spec(PACKAGE) is not None


def codes_of_avif(file: IO[bytes]) -> Codes | None:
    """The colours of the primary item: its property `colr` of type `nclx`; where it has
    none, those of the sequence header of its AV1, as in libavif 1.4. None: neither
    gives any.

    Raises Unread for a file that gives them in the header of a film, and OSError,
    struct.error or IndexError for a damaged one.
    """
    item = _PrimaryItem(file)
    for name, content in item.properties:
        if name == b"colr" and content[:4] == b"nclx":
            return struct.unpack(">2H", content[4:8])
    for data in (dict(item.properties).get(b"av1C", b"")[4:], item.beginning(file)):
        for kind, content in _units(data):
            if kind == _SEQUENCE_HEADER:
                return _codes_of_sequence(content)
    return None


def bits_of_avif(file: IO[bytes]) -> int:
    """The bits of a value of the primary item: by `pixi`, else by the configuration of
    AV1; 8 where neither gives them."""
    try:
        properties = dict(_PrimaryItem(file).properties)
    except (OSError, struct.error, IndexError):
        return 8
    pixi = properties.get(b"pixi", b"")
    if len(pixi) > 5:
        return pixi[5]
    is_wide, is_12 = 0x40, 0x20  # of the third byte
    flags = (*properties.get(b"av1C", b""), 0, 0, 0)[2]
    return 8 if not flags & is_wide else 12 if flags & is_12 else 10


# ---------------------------------------------------------------- boxes


def _boxes_of(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and contents of each box. Ends silently at the first box that is longer than
    the data."""
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if length == 1 and start + 8 <= len(data):
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
        length = length or len(data) - at
        if length < start - at or at + length > len(data):
            return
        yield kind, data[start : at + length]
        at += length


def _meta_of(file: IO[bytes]) -> bytes:
    """The contents of the box `meta` of a file; empty where it has none."""
    at = 0
    for _ in range(_MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        length, kind = struct.unpack_from(">I4s", head)
        start = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", head, 8)
            start = 16
        if length < start:
            break
        if kind == b"meta":
            file.seek(at + start)
            return file.read(min(length - start, _MOST_META))
        at += length
    return b""


class _PrimaryItem:
    """The item that is the picture."""

    def __init__(self, file: IO[bytes]) -> None:
        boxes = dict(_boxes_of(_meta_of(file)[4:]))  # behind version and flags
        item = boxes.get(b"pitm", b"")
        self._number = int.from_bytes(item[4 : 6 if item[:1] == b"\0" else 8], "big")
        self._locations = boxes.get(b"iloc", b"")
        parts = list(_boxes_of(boxes.get(b"iprp", b"")))
        all_of_them = [
            box for kind, held in parts if kind == b"ipco" for box in _boxes_of(held)
        ]
        indices = [
            index
            for kind, held in parts
            if kind == b"ipma"
            for index in _properties_of(held, self._number)
        ]
        self.properties = [
            all_of_them[index - 1]
            for index in indices
            if 1 <= index <= len(all_of_them)
        ]
        """Kind and contents of each."""

    def beginning(self, file: IO[bytes]) -> bytes:
        """The first bytes of its AV1; empty where they are not in the file itself."""
        place = _place_of(self._locations, self._number)
        if place is None:
            return b""
        file.seek(place)
        return file.read(_MOST_OF_ITEM)


class _Bits:
    """Reads bit fields, the highest bits of each byte first. Raises IndexError behind
    the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> int:
        first, self._at = self._at, self._at + count
        if self._at > 8 * len(self._data):
            raise IndexError("its header is not whole")
        bytes_read = self._data[first // 8 : (self._at + 7) // 8]
        value = int.from_bytes(bytes_read, "big") >> (-self._at % 8)
        return value & ((1 << count) - 1)


def _properties_of(associations: bytes, item: int) -> list[int]:
    """The indices, from 1 on, of the properties of an item, from a box `ipma`."""
    bits = _Bits(associations)
    version = bits.take(8)
    bits.take(23)
    index_bits = 15 if bits.take(1) else 7
    for _ in range(bits.take(32)):
        number = bits.take(32 if version else 16)
        indices = []
        for _ in range(bits.take(8)):
            bits.take(1)  # whether a reader must know the property
            indices.append(bits.take(index_bits))
        if number == item:
            return indices
    return []


def _place_of(locations: bytes, item: int) -> int | None:
    """Where the data of an item begin in the file, from a box `iloc`; None where they
    are elsewhere."""
    if not locations:
        return None
    bits = _Bits(locations)
    version = bits.take(8)
    bits.take(24)
    offset, length, base, index = (8 * bits.take(4) for _ in range(4))
    number = 32 if version == 2 else 16
    for _ in range(bits.take(number)):
        found = bits.take(number)
        method = bits.take(16) & 15 if version else 0
        bits.take(16)
        start = bits.take(base)
        offsets = []
        for _ in range(bits.take(16)):
            bits.take(index if version else 0)
            offsets.append(bits.take(offset))
            bits.take(length)
        if found == item:
            return start + offsets[0] if method == 0 and offsets else None
    return None


# ---------------------------------------------------------------- AV1


def _units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and contents of each open bitstream unit that has its size."""
    at = 0
    while at < len(data) and data[at] & 2:
        kind = data[at] >> 3 & 15
        at += 2 if data[at] & 4 else 1
        size = 0
        for place in range(8):
            size |= (data[at] & 127) << 7 * place
            at += 1
            if data[at - 1] < 128:
                break
        yield kind, data[at : at + size]
        at += size


def _codes_of_sequence(header: bytes) -> Codes | None:
    """The colours by the sequence header of a still picture; None where it gives
    none."""
    bits = _Bits(header)
    profile = bits.take(3)
    bits.take(1)
    if not bits.take(1):
        raise Unread("an AVIF that has the header of a film, and no nclx")
    bits.take(5)
    wide_width = 1 + bits.take(4)
    wide_height = 1 + bits.take(4)
    bits.take(wide_width + wide_height)
    bits.take(6)  # tools
    has_many_bits = bits.take(1)
    if profile == 2 and has_many_bits:
        bits.take(1)
    if profile != 1:  # whether it is grey
        bits.take(1)
    return (bits.take(8), bits.take(8)) if bits.take(1) else None
