"""Whether the images that a job names are those that its run trained on: under another
mount, in a folder of another name, with other file names, or in another order. Imports
no torch.

An image is known by its content (`fingerprint`). The run keeps the order it began with:
the index of an image decides when in an epoch it is used. Called by `train.resumption`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from toolkit.data.scan.fingerprint import DatasetHashes

PLACES = ("folder_path", "captions_file", "control_path", "mask_path")
"""Keys of an entry of `datasets` that say where its files are."""

Entry = Mapping[str, Any]
"""An entry of `datasets`, plain data."""


@dataclass(frozen=True)
class RunOrder:
    """The order of the images in which a run began.

    >>> recorded = {"old/a.png": "f0", "old/b.png": "9c"}
    >>> current = {"new/1.png": "9c", "new/2.png": "f0"}
    >>> before, given = [{"folder_path": "old"}], [{"folder_path": "new"}]
    >>> run_order(recorded, current, before, given).names
    ('new/2.png', 'new/1.png')
    """

    names: tuple[str, ...]
    """Names of the images in the job, as in `DatasetHashes`."""

    entries: tuple[int, ...]
    """For each entry of the job's `datasets`, its index in the job that began the
    run."""

    is_as_found: bool
    """A scan of the job gives this order."""

    def settings(
        self, recorded: Sequence[Entry], given: Sequence[Entry]
    ) -> list[dict[str, Any]]:
        """The recorded entries in the order of the job, with its places: what differs
        from the job's own is a change of the settings."""
        return [
            {**recorded[before], **{key: entry[key] for key in PLACES if key in entry}}
            for before, entry in zip(self.entries, given, strict=True)
        ]

    def as_begun(self, given: Sequence[Entry]) -> list[Entry]:
        """The job's entries in the order of the job that began the run, in which they
        are recorded: the next start compares its own with that."""
        return [
            entry
            for _, entry in sorted(
                zip(self.entries, given, strict=True), key=itemgetter(0)
            )
        ]


def run_order(
    recorded: DatasetHashes,
    current: DatasetHashes,
    before: Sequence[Entry],
    given: Sequence[Entry],
) -> RunOrder | None:
    """The order in which the run began, where the job has the same images; None where
    it has others.

    recorded, current: hashes of the images of the run and of the job, in their orders.
    before, given: their `datasets`.
    """
    of_run, of_job = list(recorded.values()), list(current.values())
    if sorted(of_run) != sorted(of_job) or len(before) != len(given):
        return None
    hashes = _hashes_of(recorded, before), _hashes_of(current, given)
    entries = _same_entries(*hashes, before, given)
    if entries is None:
        return None
    if of_run == of_job and entries == sorted(entries):
        return RunOrder(tuple(current), tuple(entries), True)
    if _are_nested(current, given):
        return None  # the order of an image that two entries use is not recorded
    # Which of two equal images of an entry is used for the other makes no difference.
    names: dict[tuple[int, str], list[str]] = {}
    for name, image in _with_entries(current, given, entries).items():
        names.setdefault(image, []).append(name)
    images = _with_entries(recorded, before, range(len(before))).values()
    in_order = tuple(names[image].pop(0) for image in images)
    return RunOrder(in_order, tuple(entries), False)


def _with_entries(
    hashes: DatasetHashes, entries: Sequence[Entry], indices: Sequence[int]
) -> dict[str, tuple[int, str]]:
    """Each name with the first of the `indices` of its entries, and its hash."""
    of_folders = [*zip(indices, _folders(entries), strict=True)]
    images = {}
    for name, digest in hashes.items():
        own = [index for index, folder in of_folders if _is_in(name, folder)]
        images[name] = min(own or indices), digest
    return images


def _folders(entries: Sequence[Entry]) -> list[str]:
    return [str(entry.get("folder_path") or "").rstrip("/\\") for entry in entries]


def _is_in(name: str, folder: str) -> bool:
    return bool(folder) and name.startswith(f"{folder}{os.sep}")


def _hashes_of(
    hashes: DatasetHashes, entries: Sequence[Entry]
) -> list[list[str]] | None:
    """The sorted hashes of each entry's images; None where the names do not say whose
    they are."""
    if len(entries) == 1:
        return [sorted(hashes.values())]
    by_entry = [
        [name for name in hashes if _is_in(name, folder)]
        for folder in _folders(entries)
    ]
    if {name for names in by_entry for name in names} != hashes.keys():
        return None
    return [sorted(hashes[name] for name in names) for names in by_entry]


def _are_nested(hashes: DatasetHashes, entries: Sequence[Entry]) -> bool:
    """Whether an image belongs to two entries of different folders."""
    folders = set(_folders(entries))
    return any(sum(_is_in(name, folder) for folder in folders) > 1 for name in hashes)


def _same_entries(
    recorded: list[list[str]] | None,
    current: list[list[str]] | None,
    before: Sequence[Entry],
    given: Sequence[Entry],
) -> list[int] | None:
    """For each given entry the index of the recorded one with the same images; None
    where one has none."""
    if recorded is None or current is None:
        return None
    left = list(range(len(before)))
    chosen = []
    for index, entry in enumerate(given):
        candidates = [other for other in left if recorded[other] == current[index]]
        if not candidates:
            return None
        alike = [
            other for other in candidates if _has_settings_of(entry, before[other])
        ]
        best = min(alike or candidates, key=lambda other: other != index)
        left.remove(best)
        chosen.append(best)
    return chosen


def _has_settings_of(entry: Entry, other: Entry) -> bool:
    """Whether they differ in nothing but their places."""
    settings = (entry.keys() & other.keys()).difference(PLACES)
    return all(entry[key] == other[key] for key in settings)
