"""Lists each folder of a dataset once per start, with what earlier starts learned of its files.

One JSON file per folder, in the cache beside the runs: size, transparency, notes and hash of each image. An entry is
valid for one version of its file. A cache file that is missing, damaged or of another format is ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from toolkit.data.directory import DirectoryListing, list_folder, real_path
from toolkit.data.file_hashes import known_digest, remember_digest
from toolkit.data.images import ImageInfo
from toolkit.data.types import Size
from toolkit.files.archives import archive_in, unpacked
from toolkit.files.redact import contains_secret
from toolkit.files.writing import CACHE_FOLDER, atomic_write

FORMAT = 4
"""Raised when the cached facts change, so that older cache files are ignored."""

MIN_FILE_AGE_NS = 2 * 10**9
"""A file that changed later than this before it was listed could change again without another time: file systems
keep times in steps of up to 2 s. What was learned of it is valid for this start only."""


class ScanCache:
    """Lists folders with the cached facts of their images, and saves new ones.

    folder: where the cache files are; None caches nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._named: dict[str, DirectoryListing] = {}
        """Folder as the user wrote it -> what was in it; each is read once."""
        self._listings: dict[str, DirectoryListing] = {}
        """The same by its real path."""

    @staticmethod
    def beside(training_folder: str) -> ScanCache:
        """The scan cache of all jobs of this training folder."""
        return ScanCache(Path(training_folder).expanduser() / CACHE_FOLDER / "scans")

    def listing(self, folder: str) -> DirectoryListing:
        """The folder with cached facts of images that did not change. Raises OSError when it cannot be read."""
        if folder not in self._named:
            listing = list_folder(folder, self._inside_archive(folder))
            place = real_path(listing.prefix)
            first = self._listings.setdefault(place, listing)
            if first is not listing:  # the same folder by another name
                listing.facts, listing.texts = first.facts, first.texts
            elif self._folder:
                _recall(listing, self._file(self._folder, place))
            self._named[folder] = listing
        return self._named[folder]

    def save(self) -> None:
        """Saves new facts.

        A folder that cannot be written to is not an error: the next start reads the dataset again. Where two jobs save
        at the same time the last one wins; both are valid.
        """
        if self._folder is None:
            return
        for place, listing in self._listings.items():
            file, document = self._file(self._folder, place), _document(listing)
            if listing.facts and _contents(file) != document:
                with suppress(OSError), atomic_write(file, durable=False) as temporary:
                    temporary.write_bytes(_digest(document) + b"\n" + document)

    def _inside_archive(self, folder: str) -> str:
        """Where the files of a folder are: beside the cache files where it is a zip file or in one."""
        if not (found := archive_in(folder)):
            return folder
        home = self._folder.parent / "zips" if self._folder else Path(self._unpacked.name)
        return os.path.join(unpacked(found[0], home), found[1])

    @cached_property
    def _unpacked(self) -> TemporaryDirectory[str]:
        return TemporaryDirectory()

    @staticmethod
    def _file(folder: Path, place: str) -> Path:
        return folder / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.json"


def _recall(listing: DirectoryListing, file: Path) -> None:
    """Adds what the cache file knows of images that did not change."""
    # The hash of the contents fits, so only another version of the program could have written something else.
    with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        known = json.loads(_contents(file))
        if known["format"] != FORMAT:
            return
        for name, (version, width, height, alpha, notes, verified, digest) in known["images"].items():
            if listing.versions.get(name) == tuple(version):
                listing.facts[name] = ImageInfo(Size(width, height), alpha, tuple(notes), verified)
                if digest:
                    remember_digest(listing.path(name), tuple(version), digest)


def _document(listing: DirectoryListing) -> bytes:
    """What is known of the images that will have another version after their next change.

    A name that holds a secret is left out: that image is read each time.
    """
    latest, images = listing.looked_at - MIN_FILE_AGE_NS, {}
    for name, facts in sorted(listing.facts.items()):
        version = listing.versions[name]
        if version and max(version[1:]) < latest and not contains_secret(name):
            digest = known_digest(listing.path(name), version)
            images[name] = [version, *facts.size, facts.alpha, facts.notes, facts.verified, digest]
    return json.dumps({"format": FORMAT, "images": images}).encode()


def _contents(file: Path) -> bytes:
    """The document in a cache file; empty where there is none that is whole."""
    try:
        digest, _, document = file.read_bytes().partition(b"\n")
    except OSError:
        return b""
    return document if digest == _digest(document) else b""


def _digest(document: bytes) -> bytes:
    return hashlib.sha256(document).hexdigest().encode()
