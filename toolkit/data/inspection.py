"""Learns what is to be known of pictures before their pixels are needed.

Few are read whole, of many the headers and ends.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from toolkit.data.digests import NO_VERSION, length_of
from toolkit.data.glance import glance
from toolkit.data.images import ImageError, ImageFacts, inspect_image
from toolkit.data.listing import Listing, Picture
from toolkit.data.reading import on_threads

READ_WHOLE = 2000
"""Up to so many pictures that are not known yet are read whole by the scan. Of more, it reads headers and ends; what is
damaged in between is then found, and all of it named, when the pictures are encoded."""

Wanted = Mapping[Listing, Collection[str]]
"""The names of the pictures that are used, by the folder they lie in."""


def inspect(wanted: Wanted) -> dict[Picture, str]:
    """Fills in the facts of every wanted picture, each read once; of those that cannot be used, what is wrong."""
    look, at_once = _read_whole, 16
    unread = {listing: _unchecked(listing, names) for listing, names in wanted.items()}
    if sum(map(len, unread.values())) > READ_WHOLE:
        look, at_once = _read_ends, 500
        unread = {listing: [name for name in names if name not in listing.facts] for listing, names in unread.items()}
    pictures = [Picture(listing, name) for listing, names in unread.items() for name in names]
    reasons: dict[Picture, str] = {}
    for picture, (facts, reason) in zip(pictures, on_threads(look, pictures, at_once), strict=True):
        if facts:
            picture.listing.facts[picture.name] = facts
        else:
            reasons[picture] = reason
    return reasons


def notes_of(wanted: Wanted) -> list[str]:
    """What is worth knowing about pictures that can be used all the same."""
    notes = []
    for listing, names in wanted.items():
        noted = sorted(name for name, facts in listing.facts.items() if facts.notes and name in names)
        notes += [f"{listing.path(name)}: {note}" for name in noted for note in listing.facts[name].notes]
    return notes


def _unchecked(listing: Listing, names: Collection[str]) -> list[str]:
    """The pictures that nobody has read whole."""
    known = map(listing.facts.get, names)
    return [name for name, facts in zip(names, known, strict=True) if facts is None or not facts.checked]


def _read_whole(picture: Picture) -> tuple[ImageFacts | None, str]:
    """Its facts, or None and what is wrong with it."""
    try:
        return inspect_image(picture.path), ""
    except ImageError as error:
        return None, error.reason


def _read_ends(picture: Picture) -> tuple[ImageFacts | None, str]:
    """The same without reading the pixels, where the header can be relied on."""
    version = picture.listing.versions[picture.name]
    try:
        facts = glance(picture.path, length_of(version)) if version != NO_VERSION else None
    except OSError:
        facts = None  # the message is the decoder's
    return (facts, "") if facts else _read_whole(picture)
