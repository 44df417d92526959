"""The boxes of which AVIF, HEIC and JPEG XL are made (ISO/IEC 14496-12, 4.2).

`avif` and `jxl` read their headers with it. It does not interpret any box.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator


def boxes_of(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and contents of each box; ends at the first that does not fit."""
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if length == 1:
            if at + 16 > len(data):
                return
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
        if length == 0:
            length = len(data) - at
        if length < start - at or at + length > len(data):
            return
        yield kind, data[start : at + length]
        at += length
