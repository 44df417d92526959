"""One hash per image of a dataset, so that a later run can tell what was added, removed and edited."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.data.cache import key_of
from toolkit.data.file_hashes import file_digest
from toolkit.data.types import Sample

DatasetHashes = dict[str, str]
"""`<folder>/<file>` -> hash of the image, its control images, mask, caption, repeats and flip."""


def fingerprint(samples: Iterable[Sample]) -> DatasetHashes:
    """The hashes of a scanned dataset. Reads every file once; the file hashes are reused for encoding."""
    found: DatasetHashes = {}
    for sample in samples:
        name, digest = f"{sample.folder}/{sample.name}", _digest(sample)
        # Two entries of `datasets` may use one folder, each with other captions.
        found[name] = key_of(uses=[found[name], digest]) if name in found else digest
    return found


def _digest(sample: Sample) -> str:
    # Only where there are any: images with neither keep the hash that older checkpoints recorded.
    more: dict[str, Any] = {"mask": file_digest(sample.mask.file)} if sample.mask else {}
    if any(sample.flip):
        more["flip"] = sample.flip
    return key_of(
        image=file_digest(sample.image),
        controls=[file_digest(path) for path in sample.control_images],
        caption=sample.caption,
        repeats=sample.repeats,
        background=sample.background or "white",
        **more,
    )


def digest_of(found: DatasetHashes) -> str:
    """One hash of the whole dataset."""
    return key_of(**{"files": found})


@dataclass(frozen=True)
class DatasetChange:
    """The images that differ between two datasets, by name."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    edited: tuple[str, ...]

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (("added", self.added), ("removed", self.removed), ("edited", self.edited))
            if names
        ]
        return "; ".join(parts)


def compare(old: Mapping[str, str], new: Mapping[str, str]) -> DatasetChange:
    """What changed from `old` to `new`."""
    return DatasetChange(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        edited=tuple(sorted(name for name in old.keys() & new.keys() if old[name] != new[name])),
    )
