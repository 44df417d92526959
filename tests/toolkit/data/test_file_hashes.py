"""Digests are computed once per version of a file."""

import hashlib
import os
from pathlib import Path

from toolkit.data.file_hashes import file_digest


def test_file_digest_follows_the_contents(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    assert file_digest(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two!")
    assert file_digest(path) == hashlib.sha256(b"two!").hexdigest()
    path.write_bytes(b"six!")  # same size; only the time of change tells
    os.utime(path, ns=(1, 1))
    assert file_digest(path) == hashlib.sha256(b"six!").hexdigest()
