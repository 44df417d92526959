"""What lies in one folder, sorted by name: images by stem, other files, subfolders.

Hidden entries are not seen. Names are compared in Unicode NFC, so that a caption or reference
written on another system (macOS decomposes accents) still finds its image.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR
from typing import NamedTuple
from unicodedata import normalize

from toolkit.data.digests import NO_VERSION, Version, version_of
from toolkit.data.images import IMAGE_SUFFIXES, ImageFacts

# A GIF counts as an image so that it is refused by name instead of being overlooked.
_CANDIDATE_SUFFIXES = IMAGE_SUFFIXES | {".gif"}


@dataclass(slots=True, eq=False)
class Listing:
    """The visible entries of one folder, by name: a path object for each of 100,000 files takes a while to make."""

    folder: str
    """As the user wrote it."""

    place: Path
    """With `~` filled in."""

    prefix: str
    """What the path of each of its files begins with."""

    subfolders: tuple[str, ...]
    looked_at: int
    """When the reading began, nanoseconds since 1970."""

    versions: dict[str, Version]
    """Of each file by its name, images and others."""

    images: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Stem -> the image files of that stem; more than one is a mistake."""

    files: dict[str, str] = field(default_factory=dict)
    """Name with its suffix in lower case -> every other file."""

    facts: dict[str, ImageFacts] = field(default_factory=dict)
    """What is known of the image files by now."""

    texts: dict[str, str] = field(default_factory=dict)
    """The captions that are known by now, by the name of their file."""

    def path(self, name: str) -> str:
        """The file of this name."""
        return self.prefix + name

    def seen(self) -> str:
        """The other entries in a few words, for a message about a folder without images."""
        suffixes = [split_suffix(name)[1] or "without suffix" for name in self.files.values()]
        counts = [f"{suffixes.count(suffix)} {suffix}" for suffix in sorted(set(suffixes))]
        if self.subfolders:
            counts.append(f"{len(self.subfolders)} subfolder(s)")
        return ", ".join(counts) or "nothing"


class Picture(NamedTuple):
    """An image file, and where what is known of it is kept."""

    listing: Listing
    name: str

    @property
    def path(self) -> str:
        return self.listing.path(self.name)

    @property
    def facts(self) -> ImageFacts | None:
        return self.listing.facts.get(self.name)


def list_folder(folder: str) -> Listing:
    """Reads one folder, not its subfolders; `~` is the home folder. Raises OSError when it cannot."""
    place = Path(os.path.expanduser(folder))
    looked_at = time.time_ns()
    versions, subfolders = _look_at(place)
    listing = Listing(folder, place, _prefix(place), tuple(subfolders), looked_at, versions)
    for name in versions:
        stem, suffix = split_suffix(name)
        if not stem.isascii():
            stem = normalize("NFC", stem)
        if suffix in _CANDIDATE_SUFFIXES:
            listing.images[stem] = (*listing.images[stem], name) if stem in listing.images else (name,)
        else:
            listing.files[stem + suffix] = name
    return listing


def _look_at(place: Path) -> tuple[dict[str, Version], list[str]]:
    """Name and version of each file, and the subfolders; all that is asked of the system."""
    versions, subfolders = {}, []
    with _opened(place) as (start, handle):
        for name in _names(place):
            try:
                stat = os.stat(start + name, dir_fd=handle)
            except OSError:  # a link to nowhere
                versions[name] = NO_VERSION
                continue
            if S_ISDIR(stat.st_mode):
                subfolders.append(name)
            else:
                versions[name] = version_of(stat)
    return versions, subfolders


def _names(place: Path) -> list[str]:
    """The visible entries, sorted. What is joined and parted lies in memory in this order: faster to walk along."""
    names = "/".join(sorted(os.listdir(place))).split("/")
    return [name for name in names if name and name[0] != "."]


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


def same_place(folder: str) -> str:
    """What two ways of writing one folder have in common: links followed, `~` filled in."""
    return os.path.realpath(os.path.expanduser(folder))


def join(folder: str, name: str) -> str:
    """`folder` as the user wrote it, with `name` appended after one slash."""
    return folder + name if folder.endswith(("/", os.sep)) else f"{folder}/{name}"
