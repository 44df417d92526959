"""Digests of files, each computed once for as long as the file stays as it is."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from toolkit.errors import RunError
from toolkit.files import sha256_of

Version = bytes
"""Size and times of a file: another one means that the file may have changed."""

_LAYOUT = struct.Struct("<qqq")
VERSION_BYTES = _LAYOUT.size

_known: dict[str, dict[str, tuple[Version, str]]] = {}


def version_of(stat: os.stat_result) -> Version:
    """What tells one state of a file from the next.

    The time of the last change of its entry (ctime) is part of it: no copy or edit that sets the time of the contents
    back can set that one back too. On Windows it is the time of creation and tells little.
    """
    return _LAYOUT.pack(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def length_of(version: Version) -> int:
    """Bytes of the file."""
    return _LAYOUT.unpack(version)[0]


def last_change(version: Version) -> int:
    """The later of its times, nanoseconds since 1970."""
    _, *times = _LAYOUT.unpack(version)
    return max(times)


def digests_in(prefix: str) -> dict[str, tuple[Version, str]]:
    """The known digests of the files whose paths begin so, by the rest of their name, with the version they are of.

    May be added to.
    """
    return _known.setdefault(prefix, {})


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes; computed again only when its version differs.

    Raises RunError when it cannot be read.
    """
    text = str(path)
    name = os.path.basename(text)
    known = digests_in(text[: -len(name)] if name else text)
    try:
        version = version_of(os.stat(text))
        found = known.get(name)
        if found is None or found[0] != version:
            found = known[name] = version, sha256_of(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    return found[1]
