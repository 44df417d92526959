"""Listing of one folder, sorted by name: images by stem, other files, subfolders; with
the facts that earlier starts learned.

Hidden entries are ignored. Names are compared in Unicode NFC, so that a caption or
control image written on another system (macOS decomposes accents) still matches its
image.

The scan cache is one JSON file per folder, beside the runs: size, transparency, notes
and hash of each image. An entry is valid for one version of its file. A cache file that
is missing, damaged or of another format is ignored. `found` lists all folders of a
scan through it; the page and `find_images` list single folders.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from stat import S_IFBLK, S_IFCHR, S_IFIFO, S_IFMT, S_IFSOCK, S_ISREG
from tempfile import TemporaryDirectory
from typing import NamedTuple
from unicodedata import normalize

from toolkit.contracts.data import Size
from toolkit.data.pixels.images import IMAGE_SUFFIXES, ImageInfo
from toolkit.data.scan.fingerprint import (
    Version,
    known_digest,
    remember_digest,
    remember_reading,
    version_of,
)
from toolkit.files.archives import archive_in, unpacked
from toolkit.files.redact import contains_secret
from toolkit.files.writing import CACHE_FOLDER, atomic_write

NUMBERED = re.compile(r"(.+)_([0-9]+)")
"""A stem that ends with a number, as where one image has several control images."""

_OF_SYSTEMS = frozenset({"__MACOSX"})
"""Folders that are hidden although their names do not begin with a dot. macOS adds
them to zip files."""

_KINDS = {
    S_IFIFO: "a pipe",
    S_IFSOCK: "a socket",
    S_IFCHR: "a device",
    S_IFBLK: "a device",
}

# A GIF counts as an image so that it is refused by name instead of being overlooked.
_CANDIDATE_SUFFIXES = IMAGE_SUFFIXES | {".gif"}


@dataclass(eq=False)
class DirectoryListing:
    """The visible entries of one folder, by name: creating path objects for 100,000
    files would take too long.

    >>> images = {"a_0": ("a_0.png",), "a_1": ("a_1.png",)}
    >>> DirectoryListing("pairs", "pairs/", looked_at=0, images=images).numbered
    {'a': ['a_0', 'a_1']}
    """

    folder: str
    """As the user wrote it."""

    prefix: str
    """Common prefix of the paths of its files; `~` is expanded."""

    looked_at: int
    """When the listing started, nanoseconds since 1970."""

    versions: dict[str, Version | None] = field(default_factory=dict)
    """The version of every file by its name; None for a broken link, and for an entry
    that is not a file."""

    subfolders: tuple[str, ...] = ()
    no_files: dict[str, str] = field(default_factory=dict)
    """Name of a pipe, socket or device -> the error message. Opening one could wait
    forever."""

    images: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Stem -> the image files of that stem; more than one is an error."""

    files: dict[str, str] = field(default_factory=dict)
    """Name with its suffix in lower case -> every other file."""

    facts: dict[str, ImageInfo] = field(default_factory=dict)
    """Known facts of the image files."""

    texts: dict[str, str] = field(default_factory=dict)
    """Known captions, by the name of their file."""

    _behind: dict[str, dict[str, list[tuple[int, str]]]] = field(
        default_factory=dict, init=False
    )

    @cached_property
    def numbered(self) -> dict[str, list[str]]:
        """Stem -> the stems `<stem>_0`, `<stem>_1` and so on of image files, in the
        order of their numbers."""
        return {
            root: [stem for _, stem in stems]
            for root, stems in self._by_root(NUMBERED).items()
        }

    def numbered_behind(self, affix: str) -> dict[str, list[tuple[int, str]]]:
        """Root of the stems `<root><affix><number>` of image files -> the numbers, in
        order, with the stems."""
        if affix not in self._behind:
            pattern = re.compile(rf"(.+){re.escape(affix)}([0-9]{{1,4}})")
            self._behind[affix] = self._by_root(pattern)
        return self._behind[affix]

    def layers(self, suffix: str) -> dict[str, list[str]]:
        """Stem of an image -> the stems of its layers beside it, in order. Empty without
        a suffix."""
        numbered = self.numbered_behind(suffix) if suffix else {}
        return {
            root: [stem for _, stem in stems]
            for root, stems in numbered.items()
            if root in self.images
        }

    def _by_root(self, pattern: re.Pattern[str]) -> dict[str, list[tuple[int, str]]]:
        """Root of the stems of image files that fit -> their numbers, in order, with
        the stems."""
        by_root: dict[str, list[tuple[int, str]]] = {}
        for match in filter(None, map(pattern.fullmatch, self.images)):
            by_root.setdefault(match[1], []).append((int(match[2]), match[0]))
        return {root: sorted(stems) for root, stems in by_root.items()}

    def path(self, name: str) -> str:
        """The file of this name."""
        return self.prefix + name

    def take_texts(self, before: DirectoryListing) -> None:
        """Takes the captions of files that have not changed since an earlier listing of
        the folder was read."""
        latest = before.looked_at - MIN_FILE_AGE_NS
        for name, text in before.texts.items():
            version = self.versions.get(name) or (0, latest, latest)
            is_same = version == before.versions.get(name)
            if is_same and max(version[1:]) < latest:
                self.texts[name] = text

    def describe(self) -> str:
        """The other entries in a few words, for a message about a folder without
        images."""
        suffixes = Counter(
            split_suffix(name)[1] or "without suffix" for name in self.files.values()
        )
        counts = [f"{count} {suffix}" for suffix, count in sorted(suffixes.items())]
        if self.subfolders:
            counts.append(f"{len(self.subfolders)} subfolder(s)")
        return ", ".join(counts) or "nothing"


class ImageFile(NamedTuple):
    """An image file, and the listing that holds its facts.

    >>> ImageFile(DirectoryListing("photos", "photos/", looked_at=0), "a.jpg").path
    'photos/a.jpg'
    """

    listing: DirectoryListing
    name: str

    @property
    def path(self) -> str:
        """The path of the file, with the folder of its listing."""
        return self.listing.path(self.name)

    @property
    def facts(self) -> ImageInfo | None:
        """Size, transparency and colours of the image; None where they are not known
        yet."""
        return self.listing.facts.get(self.name)


def list_folder(
    folder: str, files_in: str = "", names_only: bool = False
) -> DirectoryListing:
    """Reads one folder, not its subfolders; `~` is the home folder. files_in: the folder
    that contains its files, if that is another one. names_only: leaves out the versions
    of the files, which takes half of the time.

    Raises OSError when it cannot.
    """
    place = os.path.expanduser(files_in or folder)
    listing = DirectoryListing(folder, str(Path(place) / "x")[:-1], time.time_ns())
    with os.scandir(place) as scanned:
        entries = [
            entry
            for entry in scanned
            if not entry.name.startswith(".") and entry.name not in _OF_SYSTEMS
        ]
    entries.sort(key=lambda entry: entry.name, reverse=True)
    while entries:
        # Removed one by one: an entry keeps the result of `stat`, which is larger than
        # all that the listing keeps of a file.
        entry = entries.pop()
        name = entry.name
        version = None
        stat = None
        with suppress(OSError):  # a broken link, or a loop of links
            if entry.is_dir():
                listing.subfolders += (name,)
                continue
            stat = None if names_only else entry.stat()
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
    """Stem, and suffix in lower case with its dot, as pathlib splits a name.

    >>> split_suffix("a.b.JPG")
    ('a.b', '.jpg')
    """
    stem, _, suffix = name.rpartition(".")
    return (stem, "." + suffix.lower()) if stem and suffix else (name, "")


def real_path(folder: str) -> str:
    """The canonical path of a folder: links followed, `~` expanded."""
    return os.path.realpath(os.path.expanduser(folder))


def join(folder: str, name: str) -> str:
    """`folder` as the user wrote it, with `name` appended after one slash.

    >>> join("photos", "a.jpg"), join("photos/", "a.jpg")
    ('photos/a.jpg', 'photos/a.jpg')
    """
    return folder + name if folder.endswith(("/", os.sep)) else f"{folder}/{name}"


# ---------------------------------------------------------------- what earlier starts
# learned

FORMAT = 8
"""Raised when the cached facts change, so that older cache files are ignored."""

MIN_FILE_AGE_NS = 2 * 10**9
"""A file that changed later than this before it was listed could change again within
the same time stamp: file systems keep times in steps of up to 2 s. Its facts are valid
for this start only."""


class ScanCache:
    """Lists folders with the cached facts of their images, and saves new ones.

    folder: where the cache files are; None caches nothing. reads_whole: for trainers
    that decode images in their steps: each is read whole, however many they are.

    Example::

        scan_cache = ScanCache.beside("output")
        scan_cache.listing("photos").images  # {"a": ("a.jpg",)}
        scan_cache.save()
    """

    def __init__(self, folder: Path | None = None, reads_whole: bool = False) -> None:
        self.reads_whole = reads_whole
        self._folder = folder
        self._named: dict[str, DirectoryListing] = {}
        """Folder as the user wrote it -> its listing; each is read once."""
        self._listings: dict[str, DirectoryListing] = {}
        """The same by its real path."""

    @staticmethod
    def beside(training_folder: str, reads_whole: bool = False) -> ScanCache:
        """The scan cache that all jobs of this training folder share. A leading `~` is
        the home folder. Nothing is read or written yet."""
        folder = Path(training_folder).expanduser() / CACHE_FOLDER / "scans"
        return ScanCache(folder, reads_whole)

    def listing(self, folder: str) -> DirectoryListing:
        """The folder with cached facts of images that did not change. Raises OSError
        when it cannot be read."""
        if folder not in self._named:
            files_in = folder
            in_archive = archive_in(folder)
            if in_archive:  # a zip file or a folder in one: beside the cache files
                archive, inside = in_archive
                if self._folder:
                    home = self._folder.parent / "zips"
                else:
                    home = Path(self._unpacked.name)
                files_in = os.path.join(unpacked(archive, home), inside)
            self.take(list_folder(folder, files_in))
        return self._named[folder]

    def take(self, listing: DirectoryListing) -> None:
        """Takes the listing of a folder, which is then not read again. Facts of its
        images that the cache has for unchanged files are added to it."""
        place = real_path(listing.prefix)
        first = self._listings.setdefault(place, listing)
        if first is not listing:  # the same folder by another name
            listing.facts = first.facts
            listing.texts = first.texts
        elif self._folder:
            _recall(listing, self._file(self._folder, place))
        self._named[listing.folder] = listing

    def save(self) -> None:
        """Saves new facts.

        A folder that cannot be written to is not an error: the next start reads the
        dataset again. Where two jobs save at the same time the last one wins; both are
        valid.
        """
        if self._folder is None:
            return
        for place, listing in self._listings.items():
            file = self._file(self._folder, place)
            document = _document(listing)
            if listing.facts and _contents(file) != document:
                with suppress(OSError), atomic_write(file, durable=False) as temporary:
                    temporary.write_bytes(_digest(document) + b"\n" + document)

    @cached_property
    def _unpacked(self) -> TemporaryDirectory[str]:
        return TemporaryDirectory()

    @staticmethod
    def _file(folder: Path, place: str) -> Path:
        return folder / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.json"


def _recall(listing: DirectoryListing, file: Path) -> None:
    """Adds the facts in the cache file of images that did not change."""
    # The hash of the contents fits, so only another version of the program could have
    # written something else.
    with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        known = json.loads(_contents(file))
        if known["format"] != FORMAT:
            return
        for name, row in known["images"].items():
            changed, *size, alpha, notes, verified, colours, digest = row
            version: Version = tuple(changed)
            if listing.versions.get(name) == version:
                facts = ImageInfo(Size(*size), alpha, tuple(notes), verified, *colours)
                listing.facts[name] = facts
                remember_reading(listing.path(name), version, facts.reading)
                if digest:
                    remember_digest(listing.path(name), version, digest)


def _document(listing: DirectoryListing) -> bytes:
    """The facts of images that are certain to get another version with their next
    change.

    A name that holds a secret is left out: that image is read each time.
    """
    latest = listing.looked_at - MIN_FILE_AGE_NS
    images = {}
    for name, facts in sorted(listing.facts.items()):
        version = listing.versions[name]
        if version and max(version[1:]) < latest and not contains_secret(name):
            digest = known_digest(listing.path(name), version)
            colours = [facts.colours, facts.reading]
            images[name] = [
                version,
                *facts.size,
                facts.alpha,
                facts.notes,
                facts.verified,
                colours,
                digest,
            ]
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
