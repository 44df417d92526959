"""Reads the caption file that lies beside an image."""

from __future__ import annotations

import os
from codecs import BOM_UTF8
from collections.abc import Sequence
from pathlib import Path

from toolkit.data.listing import Listing

_PORTION = 1 << 16


class CaptionError(ValueError):
    """A caption file that is not text in UTF-8: which file, and where it stops being one."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def find_caption(listing: Listing, stem: str, suffixes: Sequence[str]) -> str:
    """The first caption of the image `stem` that is not empty, suffixes in order; '' without one."""
    for suffix in suffixes:
        name = listing.files.get(stem + suffix.lower())
        if name is None:
            continue
        text = listing.texts.get(name)
        if text is None:
            text = listing.texts[name] = read_caption(listing.text_path(name))
        if text:
            return text
    return ""


def read_caption(path: Path | str) -> str:
    """UTF-8 text without byte order mark and surrounding whitespace, lines ended by \\n."""
    raw = _contents(path)
    text_bytes = raw.removeprefix(BOM_UTF8)
    try:
        text = text_bytes.decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start + len(raw) - len(text_bytes)
        reason = f"is not UTF-8 text: byte 0x{raw[offset]:02x} at offset {offset}. Save it as UTF-8"
        raise CaptionError(path, reason) from error
    if "\0" in text:
        offset = raw.index(0)
        raise CaptionError(path, f"is not UTF-8 text: a zero byte at offset {offset}. Save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _contents(path: Path | str) -> bytes:
    """The bytes of a small file, in half the time that a file object takes."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        return b"".join(iter(lambda: os.read(handle, _PORTION), b""))
    finally:
        os.close(handle)
