"""What lies in one folder, sorted by name: images by stem, other files, subfolders.

Hidden entries are not seen. Names are compared in Unicode NFC, so that a caption or reference
written on another system (macOS decomposes accents) still finds its image.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from toolkit.data.images import IMAGE_SUFFIXES

# A GIF counts as an image so that it is refused by name instead of being overlooked.
_CANDIDATE_SUFFIXES = IMAGE_SUFFIXES | {".gif"}


@dataclass(frozen=True)
class Listing:
    """The visible entries of one folder."""

    folder: str
    """As the user wrote it."""

    images: dict[str, tuple[Path, ...]]
    """Stem -> the image files of that stem; more than one is a mistake."""

    files: dict[str, Path]
    """Name with its suffix in lower case -> every other file."""

    subfolders: tuple[str, ...]

    def seen(self) -> str:
        """The other entries in a few words, for a message about a folder without images."""
        suffixes = [path.suffix.lower() or "without suffix" for path in self.files.values()]
        counts = [f"{suffixes.count(suffix)} {suffix}" for suffix in sorted(set(suffixes))]
        if self.subfolders:
            counts.append(f"{len(self.subfolders)} subfolder(s)")
        return ", ".join(counts) or "nothing"


def list_folder(folder: str) -> Listing:
    """Reads one folder, not its subfolders; `~` is the home folder. Raises OSError when it cannot."""
    place = os.path.expanduser(folder)
    with os.scandir(place) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
    images: dict[str, tuple[Path, ...]] = {}
    files: dict[str, Path] = {}
    subfolders = []
    for entry in visible:
        path = Path(place, entry.name)
        if os.path.isdir(path):
            subfolders.append(entry.name)
        elif path.suffix.lower() in _CANDIDATE_SUFFIXES:
            stem = normalize("NFC", path.stem)
            images[stem] = (*images.get(stem, ()), path)
        else:
            files[normalize("NFC", path.stem) + path.suffix.lower()] = path
    return Listing(folder, images, files, tuple(subfolders))


def same_place(folder: str) -> str:
    """What two ways of writing one folder have in common: links followed, `~` filled in."""
    return os.path.realpath(os.path.expanduser(folder))


def join(folder: str, name: str) -> str:
    """`folder` as the user wrote it, with `name` appended after one slash."""
    return folder + name if folder.endswith(("/", os.sep)) else f"{folder}/{name}"
