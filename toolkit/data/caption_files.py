"""Reads the caption files beside images."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Sequence
from pathlib import Path

from toolkit.data.directory import DirectoryListing
from toolkit.data.thread_map import thread_map
from toolkit.errors import InputError
from toolkit.files import read_chunks


class CaptionError(ValueError):
    """A caption file that cannot be used: which file, and why."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def caption_files(listing: DirectoryListing, suffixes: Sequence[str]) -> list[list[str]]:
    """For each suffix the files that have it: one name for each of `listing.images`, in their order; '' for none."""
    files = listing.files
    return [[files.get(stem + suffix, "") for stem in listing.images] for suffix in map(str.lower, suffixes)]


def find_captions(listing: DirectoryListing, files: Sequence[list[str]], mistakes: list[InputError]) -> list[str]:
    """The first caption of each image that is not empty, in the order of `listing.images`; '' for none.

    files: as of `caption_files`. None is read that is known already. Those that cannot be used are added to `mistakes`.
    """
    texts = listing.texts
    found = [""] * len(listing.images)
    for names in files:
        unknown = [name for name, text in zip(names, found, strict=True) if name and not text and name not in texts]
        _read(listing, unknown, mistakes)
        found = [text or texts.get(name, "") for name, text in zip(names, found, strict=True)]
    return found


def _read(listing: DirectoryListing, names: Sequence[str], mistakes: list[InputError]) -> None:
    for name, text in zip(names, thread_map(_text_or_error, [listing.path(name) for name in names]), strict=True):
        if isinstance(text, CaptionError):
            mistakes.append(InputError(str(text.path), text.reason))
        else:
            listing.texts[name] = text


def read_caption(path: Path | str) -> str:
    """UTF-8 text without byte order mark and surrounding whitespace, lines ended by \\n.

    Raises CaptionError for any other file.
    """
    try:
        raw = b"".join(read_chunks(path))
    except OSError as error:
        raise CaptionError(path, f"cannot be read: {error.strerror or error}") from error
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


def _text_or_error(path: str) -> str | CaptionError:
    try:
        return read_caption(path)
    except CaptionError as error:
        return error
