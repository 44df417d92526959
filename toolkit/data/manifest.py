"""What earlier scans learned of the files of a dataset, so that a start need not read them again.

One file per scanned folder, in the cache beside the runs. An entry holds for one version of its file (size and times).
A manifest that is missing, damaged or of another format is no manifest: the files are read as at the first start.
"""

from __future__ import annotations

import hashlib
import json
import os
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import compress
from operator import and_, eq
from pathlib import Path

from toolkit.contracts import Size
from toolkit.data.digests import VERSION_BYTES, Version, digests_in, last_change
from toolkit.data.images import ImageFacts
from toolkit.data.listing import Listing, list_folder
from toolkit.files import replaced
from toolkit.redact import black_out

CACHE_FOLDER = "_cache"
"""Under the training folder; never inside the user's dataset."""

FORMAT = 1
"""Raised when what is learned of a file changes, so that what is older is learned anew."""

SETTLED_NS = 2 * 10**9
"""A file that changed later than this before it was looked at could change again without another time: file systems
keep times in steps of up to 2 s. What was learned of it holds for this start only."""

_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


class Manifest:
    """Lists folders together with what is known of their files, and keeps what was learned since.

    folder: where the files of the manifest are; None remembers nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._named: dict[str, Listing] = {}
        """Folder as the user wrote it -> what was in it; each is read once."""
        self._listings: dict[str, Listing] = {}
        """The same by its place, links followed."""
        self._stored: dict[str, str] = {}
        """Place -> digest of what is stored for it."""

    @staticmethod
    def beside(training_folder: str) -> Manifest:
        """The manifest of all jobs of this training folder."""
        return Manifest(Path(training_folder).expanduser() / CACHE_FOLDER / "scans")

    def listing(self, folder: str) -> Listing:
        """The folder, with what is known of the files that did not change. Raises OSError when it cannot be read."""
        if folder in self._named:
            return self._named[folder]
        listing = self._named[folder] = list_folder(folder)
        place = os.path.realpath(listing.place)
        first = self._listings.setdefault(place, listing)
        if first is not listing:  # the same folder by another name
            listing.facts, listing.texts = first.facts, first.texts
        elif self._folder:
            with suppress(*_DAMAGED):
                self._stored[place] = _recall(listing, self._file(place).read_bytes())
        return listing

    def save(self) -> None:
        """Keeps what was learned, where anything is new.

        A folder that cannot be written to is no error: the next start reads the dataset again. Of two jobs that save
        at once the later one stays; both are right.
        """
        for place, listing in self._listings.items():
            digest, document = _document(listing)
            if self._folder is None or digest in (None, self._stored.get(place)):
                continue
            with suppress(OSError), replaced(self._file(place), durable=False) as temporary:
                temporary.write_bytes(document)
                self._stored[place] = digest

    def _file(self, place: str) -> Path:
        return self._folder / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.json"


def _recall(listing: Listing, document: bytes) -> str:
    """Fills in what holds for the files as they are; returns the digest of the document. Raises any of _DAMAGED."""
    digest, _, contents = document.partition(b"\n")
    if hashlib.sha256(contents).hexdigest().encode() != digest:
        raise ValueError("damaged")
    columns = json.loads(contents.decode("utf-8", "surrogatepass"))
    if columns["format"] != FORMAT:
        raise ValueError("another format")
    distinct = [
        ImageFacts(Size(width, height), bool(alpha), tuple(notes), bool(checked))
        for width, height, alpha, notes, checked in columns["facts"]
    ]
    images, texts = columns["images"].split("/"), columns["texts"].split("/")
    versions = _versions(columns["versions"])
    holds = list(map(eq, map(listing.versions.get, (*images, *texts)), versions))
    facts, digests = map(distinct.__getitem__, columns["facts_of"]), columns["digests"].split("/")
    count = len(images)
    listing.facts.update(compress(zip(images, facts, strict=True), holds))
    listing.texts.update(compress(zip(texts, columns["captions"].split("\0"), strict=True), holds[count:]))
    digested = zip(images, zip(versions[:count], digests, strict=True), strict=True)
    digests_in(listing.prefix).update(compress(digested, map(and_, holds, map(bool, digests))))
    return digest.decode()


def _document(listing: Listing) -> tuple[str | None, bytes]:
    """Digest and document of what is known of the settled files; None without any image. Columns: quickly read."""
    settled = _settled(listing)
    images = _harmless({name: name for name in sorted(listing.facts) if name in settled})
    if not images:
        return None, b""
    texts = _harmless({name: f"{name}\0{listing.texts[name]}" for name in sorted(listing.texts) if name in settled})
    distinct: dict[ImageFacts, int] = {}
    facts_of = [distinct.setdefault(listing.facts[name], len(distinct)) for name in images]
    columns = {
        "format": FORMAT,
        "facts": [[*facts.size, facts.alpha, facts.notes, facts.checked] for facts in distinct],
        "images": "/".join(images),
        "facts_of": facts_of,
        "digests": "/".join(_digests(listing, images)),
        "texts": "/".join(texts),
        "captions": "\0".join(listing.texts[name] for name in texts),
        "versions": b64encode(b"".join(listing.versions[name] for name in (*images, *texts))).decode(),
    }
    contents = json.dumps(columns, ensure_ascii=False).encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(contents).hexdigest()
    return digest, digest.encode() + b"\n" + contents


def _digests(listing: Listing, images: Iterable[str]) -> Iterator[str]:
    """The digest of each image, '' where it is not known."""
    known = digests_in(listing.prefix)
    for name in images:
        version, sha256 = known.get(name, (b"", ""))
        yield sha256 if version == listing.versions[name] else ""


def _settled(listing: Listing) -> set[str]:
    """Names of the files whose next change will give them another version."""
    latest = listing.looked_at - SETTLED_NS
    return {name for name, version in listing.versions.items() if last_change(version) < latest}


def _harmless(texts: dict[str, str]) -> list[str]:
    """The names of the texts without those that hold a secret: they are read from the user's own files each time."""
    together = "\0".join(texts.values())
    if black_out(together) == together:
        return list(texts)
    return [name for name, text in texts.items() if black_out(text) == text]


def _versions(text: str) -> list[Version]:
    joined = b64decode(text)
    return [joined[start : start + VERSION_BYTES] for start in range(0, len(joined), VERSION_BYTES)]
