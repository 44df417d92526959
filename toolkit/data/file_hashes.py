"""SHA-256 hashes of files, each computed once until the file changes."""

from __future__ import annotations

import os
from pathlib import Path

from toolkit.errors import RunError
from toolkit.files.writing import sha256_of

Version = tuple[int, int, int]
"""Bytes of a file, and the times (ns since 1970) at which its contents and its entry last changed. Where it differs the
file may have changed. No copy or edit that sets the time of the contents back can set that of the entry (ctime) back
too; on Windows that one is the time of creation."""

_known: dict[str, tuple[Version, str]] = {}
"""Path -> the version that was hashed, and its hash (hex)."""


def version_of(stat: os.stat_result) -> Version:
    """The version of a file."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def remember_digest(path: str, version: Version, digest: str) -> None:
    """Takes the hash of a file's version from an earlier start."""
    _known[path] = version, digest


def known_digest(path: str, version: Version) -> str:
    """The hash of this version of a file; empty where it has not been computed."""
    known, digest = _known.get(path, (None, ""))
    return digest if known == version else ""


def file_digest(path: Path | str) -> str:
    """SHA-256 (hex) of a file's bytes; recomputed only when its version differs.

    Raises RunError when it cannot be read.
    """
    path = os.fspath(path)
    try:
        version = version_of(os.stat(path))
        digest = known_digest(path, version) or sha256_of(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    _known[path] = version, digest
    return digest
