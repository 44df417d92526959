"""Columns of many values in one file behind a checksum, made to be read in one go: JSON takes twice as long.

First line: SHA-256 of all that follows. Second line: JSON with the facts and the length of each column. Then the
columns, one after another.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

DECODE_ERRORS = (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error)
"""What reading a document raises that is not what `dump_columns` made."""

_ENCODING = ("utf-8", "surrogatepass")  # a name that is no text (os.fsdecode) comes back as it was
_DIGEST_LINE = 2 * hashlib.sha256().digest_size + 1


def dump_columns(facts: Mapping[str, Any], columns: Mapping[str, bytes]) -> bytes:
    """The document of these columns. facts: whatever JSON can say, by any name but `lengths`."""
    head = json.dumps({**facts, "lengths": {name: len(column) for name, column in columns.items()}})
    contents = b"\n".join([head.encode(), b"".join(columns.values())])
    return b"\n".join([_digest(contents), contents])


def digest_of(document: bytes) -> bytes:
    """What a document begins with, and no other does."""
    return document[:_DIGEST_LINE]


def load_columns(document: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Facts and columns of a document. Raises any of DECODE_ERRORS."""
    if digest_of(document) != _digest(memoryview(document)[_DIGEST_LINE:]) + b"\n":
        raise ValueError("damaged")
    start = document.index(b"\n", _DIGEST_LINE) + 1
    facts = json.loads(document[_DIGEST_LINE:start])
    columns = {}
    for name, length in facts["lengths"].items():
        columns[name] = document[start : start + length]
        start += length
    return facts, columns


def of_texts(values: Iterable[str], end: str) -> bytes:
    """A column of texts, each with `end` behind it, which none of them holds."""
    return end.join([*values, ""]).encode(*_ENCODING)


def texts(column: bytes, end: str) -> list[str]:
    """The texts of a column."""
    return column.decode(*_ENCODING).split(end)[:-1]


def rows(column: bytes, length: int) -> list[bytes]:
    """The pieces of `length` bytes that a column is joined of."""
    return list(chain.from_iterable(struct.iter_unpack(f"{length}s", column)))


def _digest(contents: bytes | memoryview) -> bytes:
    return hashlib.sha256(contents).hexdigest().encode()
