"""SHA-256 hashes of files, and one hash for each image of a dataset.

The hash of a file is computed once until the file changes; `directory` keeps it in the
scan cache for later starts. `fingerprint` hashes each image with all that belongs to
it, and `compare` tells from two fingerprints what was added, removed and edited. The
trainers record the fingerprint and compare it at a resume; `moved` recognises images
under other names by it. Keys of cached latents contain `image_digest`. Imports no
torch.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.contracts.data import MIDDLE, Sample
from toolkit.data.pixels.images import image_reading
from toolkit.errors import RunError
from toolkit.files.tensor_cache import key_of
from toolkit.files.writing import sha256_of

Version = tuple[int, int, int]
"""Bytes of a file, and the times (ns since 1970) at which its contents and its entry
last changed. If it differs, the file may have changed. A copy or an edit can set the
time of the contents back, but not the time of the entry (ctime). On Windows the latter
is the time of creation."""

_known: dict[str, tuple[Version, str]] = {}
"""Path -> the version that was hashed, and its hash (hex)."""


def version_of(stat: os.stat_result) -> Version:
    """Size in bytes, and the times (ns since 1970) of the last change of the contents
    and of the entry. A file with an equal version counts as unchanged."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def remember_digest(path: str, version: Version, digest: str) -> None:
    """Takes the hash of a file from an earlier start, so that it is not read again
    while its version is `version`."""
    _known[path] = version, digest


def known_digest(path: str, version: Version) -> str:
    """The hash of this version of a file; empty where it has not been computed."""
    known, digest = _known.get(path, (None, ""))
    return digest if known == version else ""


def file_digest(path: Path | str) -> str:
    """SHA-256 (hex) of a file's bytes; recomputed only when its version differs.

    Raises RunError when it cannot be read.
    """
    path = os.fspath(path)
    try:
        version = version_of(os.stat(path))
        digest = known_digest(path, version) or sha256_of(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    _known[path] = version, digest
    return digest


_readings: dict[str, tuple[Version, str]] = {}
"""Path -> the version whose header was read, and `ImageInfo.reading`."""


def remember_reading(path: str, version: Version, reading: str) -> None:
    """Takes `ImageInfo.reading` of a file from a scan. It holds while the version of
    the file is `version`."""
    _readings[path] = version, reading


def image_digest(path: Path | str) -> str:
    """The identity of an image's pixels: the hash of its file, or another hash where
    the program reads the file otherwise than its first version did. So cached latents
    of the old pixels are not used for the new ones.

    Raises RunError when it cannot be read.
    """
    path = os.fspath(path)
    digest = file_digest(path)
    version, _ = _known[path]
    known, reading = _readings.get(path, (None, ""))
    if known != version:
        reading = image_reading(path)
        _readings[path] = version, reading
    return digest_as_read(digest, reading)


def digest_as_read(digest: str, reading: str) -> str:
    """The identity of an image's pixels. digest: hash of the file. reading: as
    `ImageInfo.reading`; where it is empty, `digest` is the identity."""
    return key_of(file=digest, reading=reading) if reading else digest


DatasetHashes = dict[str, str]
"""`<folder>/<file>` -> hash of the image, its control images, mask, caption, repeats,
flip and focus."""


def fingerprint(samples: Iterable[Sample]) -> DatasetHashes:
    """The hashes of a scanned dataset. Reads every file once; the file hashes are
    reused for encoding."""
    hashes: DatasetHashes = {}
    for sample in samples:
        name = name_of(sample)
        digest = _digest(sample)
        # Two entries of `datasets` may use one folder, each with other captions.
        hashes[name] = key_of(uses=[hashes[name], digest]) if name in hashes else digest
    return hashes


def name_of(sample: Sample) -> str:
    """The name of an image in `DatasetHashes`: the folder of the dataset, "/", and the
    path below it."""
    return f"{sample.folder}/{sample.name}"


_before: dict[str, str] = {}
"""Hash of an image -> its hash in versions of the program that read some of its files
otherwise."""


def _digest(sample: Sample) -> str:
    digest = _digest_by(sample, image_digest)
    before = _digest_by(sample, file_digest)
    if digest != before:
        _before[digest] = before
    return digest


def _digest_by(sample: Sample, image_digest: Callable[[str], str]) -> str:
    more = {
        "mask": sample.mask and image_digest(sample.mask.file),
        "layers": [image_digest(path) for path in sample.layers],
        "flip": of_sides(sample.flip) if sample.flip else None,
        "captions": sample.captions,
        "weight": sample.loss_weight if sample.loss_weight != 1 else None,
        "focus": sample.focus if sample.focus != MIDDLE else None,
    }
    # Only what there is: images without any of it keep the hash that older checkpoints
    # recorded.
    given = {name: value for name, value in more.items() if value or value == 0}
    return key_of(
        image=image_digest(sample.image),
        controls=[image_digest(path) for path in sample.control_images],
        caption=sample.caption,
        repeats=sample.repeats,
        background=sample.background or "white",
        **given,
    )


def of_sides(flip: bool) -> tuple[bool, bool]:
    """`Sample.flip` as keys and hashes have it: whether the image is mirrored left to
    right, and top to bottom.

    >>> of_sides(True)
    (True, False)
    """
    return flip, False


def digest_of(hashes: DatasetHashes) -> str:
    """One SHA-256 (hex) of the whole dataset. It changes with any name or hash in
    `hashes`."""
    return key_of(**{"files": hashes})


@dataclass(frozen=True)
class DatasetChange:
    """The images that differ between two datasets, by name.

    >>> print(compare({"a/1.png": "0f"}, {"a/1.png": "0f", "a/2.png": "1c"}))
    1 added (a/2.png)
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    edited: tuple[str, ...]
    converted: tuple[str, ...] = ()
    """Files that did not change, and that an earlier version of the program read in
    other colours."""

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:3])}{(', ...' if len(names) > 3 else '')})"
            for what, names in (
                ("added", self.added),
                ("removed", self.removed),
                ("edited", self.edited),
                (
                    "whose colours an earlier version of the program read wrongly",
                    self.converted,
                ),
            )
            if names
        ]
        return "; ".join(parts)


def compare(old: Mapping[str, str], new: Mapping[str, str]) -> DatasetChange:
    """The changes from `old` to `new`. An image that was renamed or moved has not
    changed."""
    removed = _unmatched(old, new)
    added = _unmatched(new, old)
    edited = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
    converted = [name for name in edited if _before.get(new[name]) == old[name]]
    return DatasetChange(
        added=added,
        removed=removed,
        edited=tuple(name for name in edited if name not in converted),
        converted=tuple(converted),
    )


def _unmatched(hashes: Mapping[str, str], others: Mapping[str, str]) -> tuple[str, ...]:
    """The names that the others lack, sorted. Images that the others have under a new
    name are left out."""
    left = Counter(others[name] for name in others.keys() - hashes.keys())
    names = []
    for name in sorted(hashes.keys() - others.keys()):
        left[hashes[name]] -= 1
        if left[hashes[name]] < 0:
            names.append(name)
    return tuple(names)
