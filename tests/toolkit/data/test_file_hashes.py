"""Digests are computed once per version of a file."""

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

from toolkit.data.file_hashes import VERSION_BYTES, file_digest, last_change, length_of, version_of


def test_file_digest_follows_the_contents(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    assert file_digest(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two!")
    assert file_digest(path) == hashlib.sha256(b"two!").hexdigest()
    path.write_bytes(b"six!")  # same size; only the time of change tells
    os.utime(path, ns=(1, 1))
    assert file_digest(path) == hashlib.sha256(b"six!").hexdigest()


def test_a_time_of_a_broken_clock_is_the_latest_there_is() -> None:
    """Files of some systems may say the year 30828; no file here can be made to."""
    version = version_of(SimpleNamespace(st_size=3, st_mtime_ns=2**70, st_ctime_ns=5))
    assert length_of(version) == 3 and len(version) == VERSION_BYTES
    assert last_change(version) == 2**63 - 1
