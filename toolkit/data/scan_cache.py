"""Caches the results of scans of a dataset, so that a start does not read its files again.

One cache file per scanned folder, in the cache beside the runs. An entry is valid for one version of its file (size and
times). A cache file that is missing, damaged or of another format is ignored: the files are read again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from toolkit.data import column_file
from toolkit.data.directory import DirectoryListing, list_folder
from toolkit.data.file_hashes import (
    DIGEST_BYTES,
    VERSION_BYTES,
    Digests,
    digests_in,
    has_new_digests,
    last_change,
    register_cached_hashes,
)
from toolkit.data.images import ImageInfo
from toolkit.data.types import Size
from toolkit.files.redact import redact_text
from toolkit.files.writing import CACHE_FOLDER, atomic_write

FORMAT = 3
"""Raised when the cached facts change, so that older cache files are ignored."""

MIN_FILE_AGE_NS = 2 * 10**9
"""A file that changed later than this before it was looked at could change again without another time: file systems
keep times in steps of up to 2 s. What was learned of it holds for this start only."""

_CAPTION, _UNKNOWN = -1, -2
"""What a file is that is no image: its caption is known, nothing is. An image has the number of its facts instead."""

_NO_DIGEST = bytes(DIGEST_BYTES)
_END_OF_NAME, _END_OF_CAPTION = "/", "\0"

_Known = tuple[dict[str, ImageInfo], dict[str, str]]
"""Facts of the images and texts of the captions in a folder, by name."""


class ScanCache:
    """Lists folders with the cached facts of their files, and saves new ones.

    folder: where the cache files are; None caches nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._named: dict[str, DirectoryListing] = {}
        """Folder as the user wrote it -> what was in it; each is read once."""
        self._listings: dict[str, DirectoryListing] = {}
        """The same by its place, links followed."""
        self._recalled: dict[str, _Known | None] = {}
        """Place -> what is stored for it, where all of that still holds."""
        self._stored: dict[str, bytes] = {}
        """Place -> the digest of what is stored for it."""

    @staticmethod
    def beside(training_folder: str) -> ScanCache:
        """The scan cache of all jobs of this training folder."""
        return ScanCache(Path(training_folder).expanduser() / CACHE_FOLDER / "scans")

    def listing(self, folder: str) -> DirectoryListing:
        """The folder with cached facts of files that did not change. Raises OSError when it cannot be read."""
        if folder in self._named:
            return self._named[folder]
        listing = self._named[folder] = list_folder(folder)
        place = os.path.realpath(listing.place)
        first = self._listings.setdefault(place, listing)
        if first is not listing:  # the same folder by another name
            listing.facts, listing.texts = first.facts, first.texts
            register_cached_hashes(listing.prefix, partial(digests_in, first.prefix))
        elif self._folder:
            with suppress(OSError, *column_file.DECODE_ERRORS):
                document = self._file(place).read_bytes()
                self._recalled[place] = _recall(listing, document)
                self._stored[place] = column_file.digest_of(document)
        return listing

    def save(self) -> None:
        """Saves new facts.

        A folder that cannot be written to is no error: the next start reads the dataset again. Where two jobs save at
        the same time the last one wins; both are valid.
        """
        for place, listing in self._listings.items():
            known = (listing.facts, listing.texts) == self._recalled.get(place)
            if self._folder is None or (known and not has_new_digests(listing.prefix)):
                continue
            document = _document(listing)
            if document is None or column_file.digest_of(document) == self._stored.get(place):
                continue
            with suppress(OSError), atomic_write(self._file(place), durable=False) as temporary:
                temporary.write_bytes(document)
                self._stored[place] = column_file.digest_of(document)

    def _file(self, place: str) -> Path:
        assert self._folder is not None  # without a folder nothing is recalled or saved
        return self._folder / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.columns"


def _recall(listing: DirectoryListing, document: bytes) -> _Known | None:
    """Fills in what holds for the files as they are; returns it where that is all that is stored.

    Raises any of DECODE_ERRORS, and has filled in nothing then.
    """
    known, of = column_file.load_columns(document)
    if known["format"] != FORMAT:
        raise ValueError("another format")
    distinct = [
        ImageInfo(Size(width, height), bool(alpha), tuple(notes), bool(checked))
        for width, height, alpha, notes, checked in known["facts"]
    ]
    names, kinds = _unchanged(listing, of["names"], of["versions"]), known["kinds"]
    facts = {name: distinct[kind] for name, kind in zip(names, kinds, strict=True) if kind >= 0 and name}
    captioned = [name for name, kind in zip(names, kinds, strict=True) if kind == _CAPTION]
    images = len(kinds) - kinds.count(_CAPTION) - kinds.count(_UNKNOWN)
    if len(of["digests"]) != images * DIGEST_BYTES:
        raise ValueError("digests of other images")
    captions = zip(captioned, column_file.texts(of["captions"], _END_OF_CAPTION), strict=True)
    texts = {name: caption for name, caption in captions if name}
    listing.facts.update(facts)
    listing.texts.update(texts)
    register_cached_hashes(listing.prefix, lambda: _digests_of(names, kinds, of))
    return (facts, texts) if names is listing.names else None


def _digests_of(names: list[str], kinds: list[int], of: dict[str, bytes]) -> Digests:
    """The digests of the images, each of the version that it is stored with."""
    digests = iter(column_file.rows(of["digests"], DIGEST_BYTES))
    found: Digests = {}
    for name, version, kind in zip(names, column_file.rows(of["versions"], VERSION_BYTES), kinds, strict=True):
        digest = next(digests) if kind >= 0 else _NO_DIGEST
        if digest != _NO_DIGEST:
            found[name] = version + digest
    return found


def _unchanged(listing: DirectoryListing, names: bytes, versions: bytes) -> list[str]:
    """The files of which something is known; '' for one that is not as it was."""
    if versions == listing.joined_versions and names == column_file.of_texts(listing.names, _END_OF_NAME):
        return listing.names  # as most starts find it
    files = zip(column_file.texts(names, _END_OF_NAME), column_file.rows(versions, VERSION_BYTES), strict=True)
    return [name if listing.versions.get(name) == version else "" for name, version in files]


def _document(listing: DirectoryListing) -> bytes | None:
    """The document of what is known of the settled files; None without any image."""
    names = _without_secrets({name: f"{name}\0{listing.texts.get(name, '')}" for name in _settled(listing)})
    distinct: dict[ImageInfo, int] = {}
    kinds = [_kind(name, listing, distinct) for name in names]
    if not distinct:
        return None
    facts = [[*facts.size, facts.alpha, facts.notes, facts.verified] for facts in distinct]
    images = [name for name, kind in zip(names, kinds, strict=True) if kind >= 0]
    captions = [listing.texts[name] for name, kind in zip(names, kinds, strict=True) if kind == _CAPTION]
    return column_file.dump_columns(
        {"format": FORMAT, "facts": facts, "kinds": kinds},
        {
            "names": column_file.of_texts(names, _END_OF_NAME),
            "versions": b"".join(map(listing.versions.__getitem__, names)),
            "digests": b"".join(_digests(listing, images)),
            "captions": column_file.of_texts(captions, _END_OF_CAPTION),
        },
    )


def _digests(listing: DirectoryListing, images: Iterable[str]) -> Iterator[bytes]:
    """The digest of each image, zeros where it is not known."""
    known = digests_in(listing.prefix)
    for name in images:
        found = known.get(name, b"")
        yield found[VERSION_BYTES:] if found.startswith(listing.versions[name]) else _NO_DIGEST


def _kind(name: str, listing: DirectoryListing, distinct: dict[ImageInfo, int]) -> int:
    """Which of the distinct facts are those of an image, or that it is a caption; images are not read as captions."""
    facts = listing.facts.get(name)
    if facts is not None:
        return distinct.setdefault(facts, len(distinct))
    return _CAPTION if name in listing.texts else _UNKNOWN


def _settled(listing: DirectoryListing) -> list[str]:
    """The files whose next change will give them another version."""
    latest = listing.looked_at - MIN_FILE_AGE_NS
    return [name for name, version in listing.versions.items() if last_change(version) < latest]


def _without_secrets(texts: dict[str, str]) -> list[str]:
    """The names of the texts without those that hold a secret: they are read from the user's own files each time."""
    together = "\0".join(texts.values())
    if redact_text(together) == together:
        return list(texts)
    return [name for name, text in texts.items() if redact_text(text) == text]
