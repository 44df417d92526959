"""Listing of one folder, sorted by name: images by stem, other files, subfolders; reading of many small files with a
few threads, which wait for the disk in parallel.

Hidden entries are ignored. Names are compared in Unicode NFC, so that a caption or control image written on another
system (macOS decomposes accents) still matches its image."""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from stat import S_IFBLK, S_IFCHR, S_IFIFO, S_IFMT, S_IFSOCK, S_ISDIR, S_ISREG
from typing import NamedTuple, TypeVar
from unicodedata import normalize

from toolkit.data.column_file import rows
from toolkit.data.file_hashes import NO_VERSION, VERSION_BYTES, Version, version_of
from toolkit.data.images import IMAGE_SUFFIXES, ImageInfo

Thing = TypeVar("Thing")
Found = TypeVar("Found")


def thread_map(work: Callable[[Thing], Found], things: Sequence[Thing], at_once: int = 500) -> Iterator[Found]:
    """The results of `work` for all things, in order.

    at_once: size of a chunk; passing a single item to a thread takes as long as reading a small file.
    """
    if not things:
        return
    portions = (things[start : start + at_once] for start in range(0, len(things), at_once))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for found in pool.map(lambda portion: [work(thing) for thing in portion], portions):
            yield from found


_NO_FILE = "is {}, not a file. Take it out of the folder"
_KINDS = {
    S_IFIFO: _NO_FILE.format("a pipe"),
    S_IFSOCK: _NO_FILE.format("a socket"),
    S_IFCHR: _NO_FILE.format("a device"),
    S_IFBLK: _NO_FILE.format("a device"),
}

# A GIF counts as an image so that it is refused by name instead of being overlooked.
_CANDIDATE_SUFFIXES = IMAGE_SUFFIXES | {".gif"}


@dataclass(eq=False)
class DirectoryListing:
    """The visible entries of one folder, by name: creating path objects for 100,000 files would take too long."""

    folder: str
    """As the user wrote it."""

    place: Path
    """The path with `~` expanded."""

    prefix: str
    """Common prefix of the paths of its files."""

    looked_at: int
    """When the listing started, nanoseconds since 1970."""

    names: list[str]
    """All files."""

    joined_versions: bytes
    """The version of each file; NO_VERSION for a broken link, and for what is no file."""

    subfolders: tuple[str, ...]
    no_files: dict[str, str]
    """Of the names, those of pipes, sockets and devices -> the error message. Opening one could wait forever."""

    images: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Stem -> the image files of that stem; more than one is an error."""

    files: dict[str, str] = field(default_factory=dict)
    """Name with its suffix in lower case -> every other file."""

    facts: dict[str, ImageInfo] = field(default_factory=dict)
    """Known facts of the image files."""

    texts: dict[str, str] = field(default_factory=dict)
    """Known captions, by the name of their file."""

    @cached_property
    def versions(self) -> dict[str, Version]:
        """Versions by file name; not needed by a start that finds nothing changed."""
        return dict(zip(self.names, rows(self.joined_versions, VERSION_BYTES), strict=True))

    def path(self, name: str) -> str:
        """The file of this name."""
        return self.prefix + name

    def describe(self) -> str:
        """The other entries in a few words, for a message about a folder without images."""
        suffixes = [split_suffix(name)[1] or "without suffix" for name in self.files.values()]
        counts = [f"{suffixes.count(suffix)} {suffix}" for suffix in sorted(set(suffixes))]
        if self.subfolders:
            counts.append(f"{len(self.subfolders)} subfolder(s)")
        return ", ".join(counts) or "nothing"


class ImageFile(NamedTuple):
    """An image file, and the listing that holds its facts."""

    listing: DirectoryListing
    name: str

    @property
    def path(self) -> str:
        return self.listing.path(self.name)

    @property
    def facts(self) -> ImageInfo | None:
        return self.listing.facts.get(self.name)


def list_folder(folder: str) -> DirectoryListing:
    """Reads one folder, not its subfolders; `~` is the home folder. Raises OSError when it cannot."""
    place = Path(os.path.expanduser(folder))
    listing = DirectoryListing(folder, place, _prefix(place), time.time_ns(), *_look_at(place))
    images, files = listing.images, listing.files
    for name in listing.names:
        stem, suffix = split_suffix(name)
        if not stem.isascii():
            stem = normalize("NFC", stem)
        if suffix in _CANDIDATE_SUFFIXES:
            images[stem] = (*images[stem], name) if stem in images else (name,)
        else:
            files[stem + suffix] = name
    return listing


def _look_at(place: Path) -> tuple[list[str], bytes, tuple[str, ...], dict[str, str]]:
    """The files, their versions, the subfolders, and what is no file; the only system calls."""
    names, versions, subfolders, no_files = _visible(place), bytearray(), [], {}
    with _opened(place) as (start, handle):
        for name in names:
            try:
                stat = os.stat(start + name, dir_fd=handle)
            except OSError:
                versions += NO_VERSION
                continue
            if S_ISREG(stat.st_mode):
                versions += version_of(stat)
            elif S_ISDIR(stat.st_mode):
                subfolders.append(name)
            else:
                no_files[name] = _KINDS.get(S_IFMT(stat.st_mode), _NO_FILE.format("something else"))
                versions += NO_VERSION
    if subfolders:
        others = set(subfolders)
        names = [name for name in names if name not in others]
    return names, bytes(versions), tuple(subfolders), no_files


def _visible(place: Path) -> list[str]:
    """The names that do not begin with a dot, sorted."""
    names = sorted(os.listdir(place))
    del names[bisect_left(names, ".") : bisect_left(names, "/")]  # the character after the dot, which no name holds
    # What is joined and parted lies in memory in this order: 200,000 names are walked along in half the time.
    return "/".join(names).split("/") if names else []


@contextmanager
def _opened(place: Path) -> Iterator[tuple[str, int | None]]:
    """How to look at a file of the folder: what to put before its name, and beside which handle (the quicker way)."""
    if os.stat not in os.supports_dir_fd:  # Windows
        yield _prefix(place), None
        return
    handle = os.open(place, os.O_RDONLY)
    try:
        yield "", handle
    finally:
        os.close(handle)


def _prefix(place: Path) -> str:
    return str(place / "x")[:-1]


def split_suffix(name: str) -> tuple[str, str]:
    """Stem, and suffix in lower case with its dot, as pathlib splits a name."""
    stem, _, suffix = name.rpartition(".")
    return (stem, "." + suffix.lower()) if stem and suffix else (name, "")


def real_path(folder: str) -> str:
    """The canonical path of a folder: links followed, `~` expanded."""
    return os.path.realpath(os.path.expanduser(folder))


def join(folder: str, name: str) -> str:
    """`folder` as the user wrote it, with `name` appended after one slash."""
    return folder + name if folder.endswith(("/", os.sep)) else f"{folder}/{name}"
