"""What lies in one folder, sorted by name: images by stem, other files, subfolders.

Hidden entries are not seen. Names are compared in Unicode NFC, so that a caption or reference
written on another system (macOS decomposes accents) still finds its image.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR
from typing import NamedTuple
from unicodedata import normalize

from toolkit.data.digests import Version, version_of
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

    images: dict[str, tuple[str, ...]]
    """Stem -> the image files of that stem; more than one is a mistake."""

    files: dict[str, str]
    """Name with its suffix in lower case -> every other file."""

    subfolders: tuple[str, ...]
    versions: dict[str, Version]
    """Of each file that could be looked at."""

    looked_at: int
    """When the reading began, nanoseconds since 1970."""

    facts: dict[str, ImageFacts] = field(default_factory=dict)
    """What is known of the image files by now."""

    texts: dict[str, str] = field(default_factory=dict)
    """The captions that are known by now, by the name of their file."""

    def path(self, name: str) -> Path:
        """The file of this name."""
        return self.place / name

    def text_path(self, name: str) -> str:
        """The same as text, which takes a tenth of the time."""
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
    def path(self) -> Path:
        return self.listing.path(self.name)

    @property
    def facts(self) -> ImageFacts | None:
        return self.listing.facts.get(self.name)


def list_folder(folder: str) -> Listing:
    """Reads one folder, not its subfolders; `~` is the home folder. Raises OSError when it cannot."""
    place = os.path.expanduser(folder)
    looked_at = time.time_ns()
    versions: dict[str, Version] = {}
    lost, subfolders = [], []
    with os.scandir(place) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == ".":
                continue
            try:
                stat = entry.stat()
            except OSError:  # a link to nowhere
                lost.append(name)
                continue
            if S_ISDIR(stat.st_mode):
                subfolders.append(name)
            else:
                versions[name] = version_of(stat)
    images: dict[str, tuple[str, ...]] = {}
    files: dict[str, str] = {}
    for name in sorted([*versions, *lost]):
        stem, suffix = split_suffix(name)
        if not stem.isascii():
            stem = normalize("NFC", stem)
        if suffix in _CANDIDATE_SUFFIXES:
            images[stem] = (*images[stem], name) if stem in images else (name,)
        else:
            files[stem + suffix] = name
    path = Path(place)
    prefix = str(path / "x")[:-1]
    return Listing(folder, path, prefix, images, files, tuple(sorted(subfolders)), versions, looked_at)


def split_suffix(name: str) -> tuple[str, str]:
    """Stem, and suffix in lower case with its dot, as pathlib splits a name."""
    dot = name.rfind(".")
    return (name[:dot], name[dot:].lower()) if 0 < dot < len(name) - 1 else (name, "")


def same_place(folder: str) -> str:
    """What two ways of writing one folder have in common: links followed, `~` filled in."""
    return os.path.realpath(os.path.expanduser(folder))


def join(folder: str, name: str) -> str:
    """`folder` as the user wrote it, with `name` appended after one slash."""
    return folder + name if folder.endswith(("/", os.sep)) else f"{folder}/{name}"
