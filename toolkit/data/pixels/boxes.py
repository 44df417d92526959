"""The boxes of which AVIF, HEIC and JPEG XL are made (ISO/IEC 14496-12, 4.2).

`avif` and `jxl` read their headers with it. It does not interpret any box.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator


def boxes_of(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind (four bytes) and contents of each box of an ISO media file, at the top
    level. Ends silently at the first box that is longer than the data.

    >>> list(boxes_of(bytes([0, 0, 0, 10]) + b"ftyp" + b"ab"))
    [(b'ftyp', b'ab')]
    """
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
