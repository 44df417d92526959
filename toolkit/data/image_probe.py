"""Reads the facts of images (size, transparency) before their pixels are needed.

A few images are read completely; of many only the first and last bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from toolkit.data.directory import DirectoryListing, ImageFile, thread_map
from toolkit.data.file_hashes import NO_VERSION, length_of
from toolkit.data.image_header import read_header
from toolkit.data.images import CLEAR, ImageError, ImageInfo, inspect_image

READ_WHOLE = 2000
"""Up to so many images that are not known yet are read whole by the scan. Of more, it reads headers and ends; what is
damaged in between is then found, and all of it named, when the images are encoded."""

Wanted = Mapping[DirectoryListing, Collection[str]]
"""The names of the images that are used, by the folder they lie in."""


def probe_images(wanted: Wanted) -> dict[ImageFile, str]:
    """Reads the facts of every wanted image once; returns the errors of those that cannot be used."""
    look, at_once = _read_whole, 16
    unread = {listing: _unchecked(listing, names) for listing, names in wanted.items()}
    if sum(map(len, unread.values())) > READ_WHOLE:
        look, at_once = _read_ends, 500
        unread = {listing: [name for name in names if name not in listing.facts] for listing, names in unread.items()}
    pictures = [ImageFile(listing, name) for listing, names in unread.items() for name in names]
    reasons: dict[ImageFile, str] = {}
    for picture, (facts, reason) in zip(pictures, thread_map(look, pictures, at_once), strict=True):
        if facts:
            picture.listing.facts[picture.name] = facts
        else:
            reasons[picture] = reason
    return reasons


def notes_of(wanted: Wanted) -> list[str]:
    """Notes about images that can be used."""
    notes = []
    for listing, names in wanted.items():
        noted = sorted(name for name, facts in listing.facts.items() if facts.notes and name in names)
        notes += [
            f"{listing.path(name)}: {note}" for name in noted for note in listing.facts[name].notes if note != CLEAR
        ]
    return notes


def _unchecked(listing: DirectoryListing, names: Collection[str]) -> list[str]:
    """The images that were never read completely."""
    known = map(listing.facts.get, names)
    return [name for name, facts in zip(names, known, strict=True) if facts is None or not facts.verified]


def _read_whole(picture: ImageFile) -> tuple[ImageInfo | None, str]:
    """Its facts, or None and the error."""
    if reason := picture.listing.no_files.get(picture.name):
        return None, reason
    try:
        return inspect_image(picture.path), ""
    except ImageError as error:
        return None, error.reason


def _read_ends(picture: ImageFile) -> tuple[ImageInfo | None, str]:
    """The same without reading the pixels, where the header is reliable."""
    version = picture.listing.versions[picture.name]
    try:
        facts = read_header(picture.path, length_of(version)) if version != NO_VERSION else None
    except OSError:
        facts = None  # the message is the decoder's
    return (facts, "") if facts else _read_whole(picture)
