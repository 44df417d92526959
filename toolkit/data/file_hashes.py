"""SHA-256 hashes of files, each computed once until the file changes."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

from toolkit.errors import RunError
from toolkit.files.writing import sha256_of

Version = bytes
"""Size and times of a file: where it differs the file may have changed."""

_LAYOUT = struct.Struct("<qqq")
VERSION_BYTES = _LAYOUT.size
_LATEST_NS = 2**63 - 1
NO_VERSION = bytes(VERSION_BYTES)
"""The version of a file without a stat result, such as a broken link."""

DIGEST_BYTES = 32

Digests = dict[str, bytes]
"""For the files of one folder: name -> version and hash, concatenated."""

_known: dict[str, Digests] = {}
"""Known hashes by the path prefix of a folder."""

_recalled: dict[str, Callable[[], Digests]] = {}
"""Hashes of earlier starts by the path prefix of a folder, not loaded yet."""


_computed: set[str] = set()
"""Path prefixes of folders with hashes that this process has computed."""


def version_of(stat: os.stat_result) -> Version:
    """The version of a file.

    The time of the last change of its entry (ctime) is part of it: no copy or edit that sets the time of the contents
    back can set that one back too. On Windows it is the time of creation and tells little.
    """
    try:
        return _LAYOUT.pack(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    except struct.error:  # times after the year 2262, which a broken clock may give; they never count as settled
        return _LAYOUT.pack(stat.st_size, min(stat.st_mtime_ns, _LATEST_NS), min(stat.st_ctime_ns, _LATEST_NS))


def length_of(version: Version) -> int:
    """Bytes of the file."""
    return _LAYOUT.unpack(version)[0]


def last_change(version: Version) -> int:
    """The later of its times, nanoseconds since 1970."""
    _, *times = _LAYOUT.unpack(version)
    return max(times)


def register_cached_hashes(prefix: str, recalled: Callable[[], Digests]) -> None:
    """Adds to `digests_in(prefix)` what `recalled` returns, when the first is asked for: a plan asks for none."""
    _recalled[prefix] = recalled


def digests_in(prefix: str) -> Digests:
    """The known digests of the files whose paths begin so, by the rest of their path. May be added to."""
    known = _known.setdefault(prefix, {})
    if recalled := _recalled.pop(prefix, None):
        known.update(recalled())
    return known


def has_new_digests(prefix: str) -> bool:
    """Whether this process has computed any hash of the folder."""
    return prefix in _computed


def file_digest(path: Path | str) -> str:
    """SHA-256 (hex) of a file's bytes; recomputed only when its version differs.

    Raises RunError when it cannot be read.
    """
    text = os.fspath(path)
    start = text.rfind(os.sep) + 1
    prefix, name = text[:start], text[start:]
    known = digests_in(prefix)
    try:
        version = version_of(os.stat(text))
        found = known.get(name)
        if found is None or not found.startswith(version):
            found = known[name] = version + bytes.fromhex(sha256_of(text))
            _computed.add(prefix)
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    return found[VERSION_BYTES:].hex()
