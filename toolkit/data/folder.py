"""From folders of images to samples: repeats from folder names; captions, control images and masks matched by name.

A dataset is one folder of images, or a folder whose direct subfolders hold them. A leading
`<int>_` in the name of the folder that holds the images is how often each is used per epoch.
Every offending file is collected before anything is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

from toolkit.config.dataset import DatasetConfig
from toolkit.data.control_images import ControlImageFinder
from toolkit.data.directory import DirectoryListing, join, real_path
from toolkit.data.folder_builder import FolderBuilder, FolderInfo
from toolkit.data.image_probe import notes_of, probe_images
from toolkit.data.images import IMAGE_SUFFIXES
from toolkit.data.scan_cache import ScanCache
from toolkit.data.unused_files import ignored_files, shorten
from toolkit.errors import DataErrors, InputError
from toolkit.interfaces import Sample


@dataclass(frozen=True)
class DatasetScan:
    """The contents of the datasets of a job, in a fixed order."""

    folders: tuple[FolderInfo, ...]
    notes: tuple[str, ...]
    """What the user should know: ignored files and why, overridden repeats, damaged colour profiles."""

    scan_cache: ScanCache = field(default_factory=ScanCache, compare=False)
    """Known facts of the files. Only a run saves it: a plan writes nothing."""

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        return tuple(chain.from_iterable(folder.samples for folder in self.folders))


def scan_datasets(
    datasets: Sequence[Any], trigger_word: str | None, reg_weight: float = 1.0, scan_cache: ScanCache | None = None
) -> DatasetScan:
    """Samples of all `datasets` sections, each file read once. Raises DataErrors naming every offender.

    reg_weight: factor on the loss of regularisation images. scan_cache: results of earlier scans, which is updated; it
    makes the scan faster and does not change its result.
    """
    scanner = _Scanner(scan_cache or ScanCache())
    drafts = [draft for index, dataset in enumerate(datasets) for draft in scanner.drafts(index, dataset)]
    for draft in drafts:
        draft.match_files(scanner.partners, scanner.mistakes)
    scanner.inspect(drafts)
    if scanner.mistakes:
        raise DataErrors(list(dict.fromkeys(scanner.mistakes)))
    for draft in drafts:
        scanner.notes += draft.check_masks()
    folders = tuple(draft.build_samples(trigger_word, reg_weight) for draft in drafts)
    notes = (*filter(None, (folder.note for folder in folders)), *scanner.notes)
    return DatasetScan(folders, notes, scanner.scan_cache)


class _Scanner:
    """Collects errors and notes over all datasets, so that they come at once."""

    def __init__(self, scan_cache: ScanCache) -> None:
        self.scan_cache = scan_cache
        self.mistakes: list[InputError] = []
        self.notes: list[str] = []
        self.partners = ControlImageFinder(self.mistakes, scan_cache.listing)

    def drafts(self, index: int, dataset: DatasetConfig) -> Iterator[FolderBuilder]:
        """The image folders of one entry: its own, or its subfolders."""
        folder = dataset.folder_path
        top = self._list(folder)
        if top is None:
            return
        if top.images:
            yield from self._draft(index, dataset, top, None)
            return
        listings = [(name, self._list(join(folder, name))) for name in _subfolders(top, dataset)]
        filled = [(name, listing) for name, listing in listings if listing and listing.images]
        for name, listing in filled:
            yield from self._draft(index, dataset, listing, name)
        if not filled:
            supported = ", ".join(sorted(IMAGE_SUFFIXES))
            self._mistake(folder, f"holds no images (seen: {top.describe()}). Supported: {supported}")
            return
        empty = [name for name, listing in listings if listing and not listing.images]
        if empty:
            self.notes.append(f"{folder}: subfolders without images ignored: {shorten(empty)}")

    def inspect(self, drafts: Sequence[FolderBuilder]) -> None:
        """Reads the facts of every image that is used."""
        wanted: dict[DirectoryListing, dict[str, None]] = {}
        for draft in drafts:
            for listing, names in draft.pictures():
                wanted.setdefault(listing, {}).update(dict.fromkeys(names))
        reasons = probe_images(wanted)
        for picture, reason in reasons.items():
            self._mistake(picture.path, reason)
        if not reasons:
            self.notes += notes_of(wanted)

    def _draft(
        self, index: int, dataset: DatasetConfig, listing: DirectoryListing, subfolder: str | None
    ) -> Iterator[FolderBuilder]:
        draft = FolderBuilder(index, dataset, listing, subfolder)
        if draft.named_repeats == 0 and not dataset.num_repeats:
            self._mistake(listing.folder, "its name asks for 0 repeats. Give 1 or more, or take it out")
            return
        self.notes += ignored_files(listing, draft.caption_files, dataset.caption_ext)
        if subfolders := _subfolders(listing, dataset):
            self.notes.append(f"{listing.folder}: holds images itself; subfolders ignored: {shorten(subfolders)}")
        yield draft

    def _list(self, folder: str) -> DirectoryListing | None:
        try:
            return self.scan_cache.listing(folder)
        except OSError as error:
            self._mistake(folder, f"cannot be read as a folder: {error.strerror or error}")
            return None

    def _mistake(self, place: str, message: str) -> None:
        self.mistakes.append(InputError(place, message))


def _subfolders(listing: DirectoryListing, dataset: DatasetConfig) -> list[str]:
    """Subfolders except those with the dataset's control images and masks."""
    partners = {real_path(folder) for folder in (*dataset.control_path, dataset.mask_path) if folder}
    return [name for name in listing.subfolders if real_path(join(listing.folder, name)) not in partners]
