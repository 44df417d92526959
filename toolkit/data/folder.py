"""Folders of images to samples: repeats from folder names, captions, references and masks matched by name.

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
from toolkit.contracts import Sample
from toolkit.data.draft import Draft, FolderInfo
from toolkit.data.ignored import ignored_files, some
from toolkit.data.images import IMAGE_SUFFIXES
from toolkit.data.inspection import inspect, notes_of
from toolkit.data.listing import Listing, join, same_place
from toolkit.data.manifest import Manifest
from toolkit.data.references import PartnerFinder
from toolkit.errors import DataErrors, Mistake


@dataclass(frozen=True)
class Scan:
    """Everything the datasets of a job hold, in a fixed order."""

    folders: tuple[FolderInfo, ...]
    notes: tuple[str, ...]
    """What the user should know: ignored files and why, overridden repeats, damaged colour profiles."""

    manifest: Manifest = field(default_factory=Manifest, compare=False)
    """What was learned of the files. Only a run saves it: a plan writes nothing."""

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        return tuple(chain.from_iterable(folder.samples for folder in self.folders))


def scan_datasets(
    datasets: Sequence[Any], trigger_word: str | None, reg_weight: float = 1.0, manifest: Manifest | None = None
) -> Scan:
    """Samples of all `datasets` sections, each file read once. Raises DataErrors naming every offender.

    reg_weight: factor on the loss of regularisation images. manifest: what earlier scans learned; it is added to.
    It changes how long the scan takes, not what it finds.
    """
    scanner = _Scanner(manifest or Manifest())
    drafts = [draft for index, dataset in enumerate(datasets) for draft in scanner.drafts(index, dataset)]
    for draft in drafts:
        draft.pair(scanner.partners, scanner.mistakes)
    scanner.inspect(drafts)
    if scanner.mistakes:
        raise DataErrors(list(dict.fromkeys(scanner.mistakes)))
    for draft in drafts:
        scanner.notes += draft.judge_masks()
    folders = tuple(draft.finish(trigger_word, reg_weight) for draft in drafts)
    notes = (*filter(None, (folder.note for folder in folders)), *scanner.notes)
    return Scan(folders, notes, scanner.manifest)


class _Scanner:
    """Collects mistakes and notes over all datasets, so that they come at once."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.mistakes: list[Mistake] = []
        self.notes: list[str] = []
        self.partners = PartnerFinder(self.mistakes, manifest.listing)

    def drafts(self, index: int, dataset: DatasetConfig) -> Iterator[Draft]:
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
            self._mistake(folder, f"holds no images (seen: {top.seen()}). Supported: {supported}")
            return
        empty = [name for name, listing in listings if listing and not listing.images]
        if empty:
            self.notes.append(f"{folder}: subfolders without images ignored: {some(empty)}")

    def inspect(self, drafts: Sequence[Draft]) -> None:
        """Learns the facts of every picture that is used."""
        wanted: dict[Listing, dict[str, None]] = {}
        for draft in drafts:
            for listing, names in draft.pictures():
                wanted.setdefault(listing, {}).update(dict.fromkeys(names))
        reasons = inspect(wanted)
        for picture, reason in reasons.items():
            self._mistake(picture.path, reason)
        if not reasons:
            self.notes += notes_of(wanted)

    def _draft(self, index: int, dataset: DatasetConfig, listing: Listing, subfolder: str | None) -> Iterator[Draft]:
        draft = Draft(index, dataset, listing, subfolder)
        if draft.named_repeats == 0 and not dataset.num_repeats:
            self._mistake(listing.folder, "its name asks for 0 repeats. Give 1 or more, or take it out")
            return
        self.notes += ignored_files(listing, draft.caption_files, dataset.caption_ext)
        if subfolders := _subfolders(listing, dataset):
            self.notes.append(f"{listing.folder}: holds images itself; subfolders ignored: {some(subfolders)}")
        yield draft

    def _list(self, folder: str) -> Listing | None:
        try:
            return self.manifest.listing(folder)
        except OSError as error:
            self._mistake(folder, f"cannot be read as a folder: {error.strerror or error}")
            return None

    def _mistake(self, place: str, message: str) -> None:
        self.mistakes.append(Mistake(place, message))


def _subfolders(listing: Listing, dataset: DatasetConfig) -> list[str]:
    """Subfolders without those that hold the dataset's references and masks."""
    partners = {same_place(folder) for folder in (*dataset.control_path, dataset.mask_path) if folder}
    return [name for name in listing.subfolders if same_place(join(listing.folder, name)) not in partners]
