"""Listing of one folder, sorted by name: images by stem, other files, subfolders.

Hidden entries are ignored. Names are compared in Unicode NFC, so that a caption or control image written on another
system (macOS decomposes accents) still matches its image."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from stat import S_IFBLK, S_IFCHR, S_IFIFO, S_IFMT, S_IFSOCK, S_ISDIR, S_ISREG
from typing import NamedTuple
from unicodedata import normalize

from toolkit.data.file_hashes import Version, version_of
from toolkit.data.images import IMAGE_SUFFIXES, ImageInfo

_NUMBERED = re.compile(r"(.+)_([0-9]+)")

_KINDS = {S_IFIFO: "a pipe", S_IFSOCK: "a socket", S_IFCHR: "a device", S_IFBLK: "a device"}

# A GIF counts as an image so that it is refused by name instead of being overlooked.
_CANDIDATE_SUFFIXES = IMAGE_SUFFIXES | {".gif"}


@dataclass(eq=False)
class DirectoryListing:
    """The visible entries of one folder, by name: creating path objects for 100,000 files would take too long."""

    folder: str
    """As the user wrote it."""

    prefix: str
    """Common prefix of the paths of its files; `~` is expanded."""

    looked_at: int
    """When the listing started, nanoseconds since 1970."""

    versions: dict[str, Version | None] = field(default_factory=dict)
    """The version of every file by its name; None for a broken link, and for what is not a file."""

    subfolders: tuple[str, ...] = ()
    no_files: dict[str, str] = field(default_factory=dict)
    """Name of a pipe, socket or device -> the error message. Opening one could wait forever."""

    images: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Stem -> the image files of that stem; more than one is an error."""

    files: dict[str, str] = field(default_factory=dict)
    """Name with its suffix in lower case -> every other file."""

    facts: dict[str, ImageInfo] = field(default_factory=dict)
    """Known facts of the image files."""

    texts: dict[str, str] = field(default_factory=dict)
    """Known captions, by the name of their file."""

    @cached_property
    def numbered(self) -> dict[str, list[str]]:
        """Stem -> the image files `<stem>_0`, `<stem>_1` and so on, in the order of their numbers."""
        found: dict[str, list[tuple[int, str]]] = {}
        for stem, (name, *_) in self.images.items():
            if match := _NUMBERED.fullmatch(stem):
                found.setdefault(match[1], []).append((int(match[2]), name))
        return {stem: [name for _, name in sorted(files)] for stem, files in found.items()}

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


def list_folder(folder: str, files_in: str = "") -> DirectoryListing:
    """Reads one folder, not its subfolders; `~` is the home folder. files_in: where its files are, if elsewhere.

    Raises OSError when it cannot.
    """
    place = os.path.expanduser(files_in or folder)
    listing = DirectoryListing(folder, str(Path(place) / "x")[:-1], time.time_ns())
    with os.scandir(place) as found:
        entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in entries:
        name, version, stat = entry.name, None, None
        with suppress(OSError):  # a broken link
            stat = entry.stat()
        if stat and S_ISDIR(stat.st_mode):
            listing.subfolders += (name,)
            continue
        if stat and S_ISREG(stat.st_mode):
            version = version_of(stat)
        elif stat:
            kind = _KINDS.get(S_IFMT(stat.st_mode), "something else")
            listing.no_files[name] = f"is {kind}, not a file. Take it out of the folder"
        listing.versions[name] = version
        stem, suffix = split_suffix(name)
        stem = normalize("NFC", stem)
        if suffix in _CANDIDATE_SUFFIXES:
            listing.images[stem] = (*listing.images.get(stem, ()), name)
        else:
            listing.files[stem + suffix] = name
    return listing


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
