"""What the header of an AVIF says of its primary item: colours and bits. Pillow 13 says
nothing of either.

`colours` calls `codes_of_avif`, `images` calls `bits_of_avif`. The pixels are decoded
by Pillow.

Sources: ISO/IEC 14496-12 (boxes), ISO/IEC 23008-12 (items and their properties), AV1
Codec ISO Media File Format Binding, 2.3 (`av1C`), AV1 Bitstream and Decoding Process
Specification, 5.3 to 5.5 (sequence header).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO

from toolkit.data.pixels.boxes import boxes_of

Codes = tuple[int, int, bool]
"""Primaries and transfer by ITU-T H.273, and whether values are 16 to 235."""

_MOST_BOXES = 1000
_MOST_META = 1 << 22
"""Bytes of the box `meta` that are read: those of a thousand tiles are some 40 kB."""

_MOST_LOCATIONS = 1 << 16
"""Bytes of the box `iloc` that are read: some 4,000 items."""

_SEQUENCE_HEADER = 1
_MOST_OF_ITEM = 256
"""Bytes of the primary item that are read: a sequence header comes first and has some
20."""


def codes_of_avif(file: IO[bytes]) -> Codes | None:
    """The colours of the primary item: its property `colr` of type `nclx`; where it has
    none, what the sequence header of its AV1 says, as in libavif 1.4. None: neither
    says anything.

    Raises OSError, struct.error or IndexError for a damaged file.
    """
    item = _PrimaryItem(file)
    for name, content in item.properties:
        if name == b"colr" and content[:4] == b"nclx":
            return (*struct.unpack(">2H", content[4:8]), False)
    for data in (dict(item.properties).get(b"av1C", b"")[4:], item.beginning(file)):
        for kind, content in _units(data):
            if kind == _SEQUENCE_HEADER:
                return _codes_of_sequence(content)
    return None


def bits_of_avif(file: IO[bytes]) -> int:
    """The bits of a value of the primary item: by `pixi`, else by the configuration of
    AV1; 8 where neither says it."""
    try:
        properties = dict(_PrimaryItem(file).properties)
    except (OSError, struct.error, IndexError):
        return 8
    pixi = properties.get(b"pixi", b"")
    configuration = properties.get(b"av1C", b"")
    if len(pixi) > 5:
        return pixi[5]
    if len(configuration) < 3 or not configuration[2] & 0x40:
        return 8
    return 12 if configuration[2] & 0x20 else 10


# ---------------------------------------------------------------- boxes


def _meta_of(file: IO[bytes]) -> bytes:
    """The contents of the box `meta` of a file; empty where it has none."""
    at = 0
    for _ in range(_MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return b""
        length, kind = struct.unpack(">I4s", head[:8])
        start = 8
        if length == 1:
            (length,) = struct.unpack(">Q", head[8:16])
            start = 16
        if kind == b"meta":
            file.seek(at + start)
            if length > start:
                return file.read(min(length - start, _MOST_META))
            return b""
        if length < start:
            return b""
        at += length
    return b""


class _PrimaryItem:
    """The item that is the picture."""

    def __init__(self, file: IO[bytes]) -> None:
        self._boxes = dict(boxes_of(_meta_of(file)[4:]))  # behind version and flags
        item = self._boxes.get(b"pitm", b"")
        self._number = int.from_bytes(item[4 : 6 if item[:1] == b"\0" else 8], "big")
        parts = list(boxes_of(self._boxes.get(b"iprp", b"")))
        all_of_them = []
        for kind, held in parts:
            if kind == b"ipco":
                for box in boxes_of(held):
                    all_of_them.append(box)
        indices = []
        for kind, held in parts:
            if kind == b"ipma":
                for index in _properties_of(held, self._number):
                    indices.append(index)
        in_range = [index for index in indices if 1 <= index <= len(all_of_them)]
        self.properties = [all_of_them[index - 1] for index in in_range]
        """Kind and contents of each."""

    def beginning(self, file: IO[bytes]) -> bytes:
        """The first bytes of its AV1, of tiles those of the first one; empty where they
        are not in the file itself."""
        place = _place_of(
            self._boxes.get(b"iloc", b""), self._first_tile() or self._number
        )
        if place is None:
            return b""
        file.seek(place)
        return file.read(_MOST_OF_ITEM)

    def _first_tile(self) -> int:
        """The first item of which this one is made; 0 where it is not made of
        others."""
        references = self._boxes.get(b"iref", b"")
        wide = 4 if references[:1] == b"\1" else 2
        for kind, held in boxes_of(references[4:]):
            if kind == b"dimg" and int.from_bytes(held[:wide], "big") == self._number:
                return int.from_bytes(held[wide + 2 : 2 * wide + 2], "big")
        return 0


def _properties_of(associations: bytes, item: int) -> list[int]:
    """The indices, from 1 on, of the properties of an item, from a box `ipma`."""
    version = associations[0]
    is_wide = associations[3] & 1
    (count,) = struct.unpack_from(">I", associations, 4)
    at = 8
    for _ in range(count):
        wide_number = 4 if version else 2
        number = int.from_bytes(associations[at : at + wide_number], "big")
        association_count = associations[at + wide_number]
        at += wide_number + 1
        size = 2 if is_wide else 1
        if number == item:
            mask = 0x7FFF if is_wide else 0x7F
            indices = []
            for start in range(at, at + association_count * size, size):
                entry = associations[start : start + size]
                indices.append(int.from_bytes(entry, "big") & mask)
            return indices
        at += association_count * size
    return []


def _place_of(locations: bytes, item: int) -> int | None:
    """Where the data of an item begin in the file, from a box `iloc`; None where they
    are elsewhere."""
    if len(locations) < 8:
        return None
    bits = _Bits(locations[:_MOST_LOCATIONS])
    version = bits.take(8)
    bits.take(24)
    wide_offset = 8 * bits.take(4)
    wide_length = 8 * bits.take(4)
    wide_base = 8 * bits.take(4)
    wide_index = 8 * bits.take(4)
    wide_number = 32 if version == 2 else 16
    for _ in range(bits.take(wide_number)):
        number = bits.take(wide_number)
        method = bits.take(16) & 15 if version else 0
        bits.take(16)
        base = bits.take(wide_base)
        offsets = []
        for _ in range(bits.take(16)):
            bits.take(wide_index if version else 0)
            offsets.append(bits.take(wide_offset))
            bits.take(wide_length)
        if number == item:
            if method == 0 and offsets:
                return base + offsets[0]
            return None
    return None


# ---------------------------------------------------------------- AV1


class _Bits:
    """Reads bit fields, the highest bits of each byte first. Raises IndexError behind
    the end."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise IndexError("its header is not whole")
        self._left -= count
        return (self._value >> self._left) & ((1 << count) - 1)


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
    """The colours by a sequence header; None where it says nothing, or has timing
    information (of films)."""
    bits = _Bits(header)
    profile = bits.take(3)
    bits.take(1)
    is_short = bits.take(1)
    if is_short:
        bits.take(5)
    elif not _skip_operating_points(bits):
        return None
    wide_width = 1 + bits.take(4)
    wide_height = 1 + bits.take(4)
    bits.take(wide_width + wide_height)
    if not is_short and bits.take(1):  # numbers of frames
        bits.take(7)
    bits.take(3)
    if not is_short:
        _skip_tools(bits)
    bits.take(3)
    has_many_bits = bits.take(1)
    if profile == 2 and has_many_bits:
        bits.take(1)
    if profile != 1:  # whether it is grey
        bits.take(1)
    if bits.take(1):
        return (bits.take(8), bits.take(8), False)
    return None


def _skip_operating_points(bits: _Bits) -> bool:
    """Whether they were read: not with timing information."""
    if bits.take(1):
        return False
    has_delays = bits.take(1)
    for _ in range(1 + bits.take(5)):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if has_delays and bits.take(1):
            bits.take(4)
    return True


def _skip_tools(bits: _Bits) -> None:
    """The tools for several frames."""
    bits.take(4)
    has_order = bits.take(1)
    if has_order:
        bits.take(2)
    has_screen_content = 1 if bits.take(1) else bits.take(1)
    if has_screen_content and not bits.take(1):
        bits.take(1)
    if has_order:
        bits.take(3)
