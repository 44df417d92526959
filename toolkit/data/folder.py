"""Folders of images to samples: repeats from folder names, captions and references matched by name.

A dataset is one folder of images, or a folder whose direct subfolders hold them. A leading
`<int>_` in the name of the folder that holds the images is how often each is used per epoch.
Every offending file is collected before anything is reported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from toolkit.contracts import CaptionRules, Sample, Size
from toolkit.data.captionfile import CaptionError, find_caption
from toolkit.data.captions import inject_trigger
from toolkit.data.images import IMAGE_SUFFIXES, ImageError, inspect_image
from toolkit.data.listing import Listing, join, list_folder, same_place
from toolkit.data.references import ReferenceFinder
from toolkit.errors import DataErrors, Mistake

_REPEATS = re.compile(r"([0-9]+)_")
_UNREAD_IMAGES = frozenset({".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".raw", ".dng", ".exr"})
_TEXT_SUFFIXES = frozenset({".txt", ".caption", ".cap", ".json"})
_LISTED_NAMES = 20


@dataclass(frozen=True)
class FolderInfo:
    """One folder that holds images."""

    dataset: int
    """Index of its entry in `datasets`."""

    folder: str
    """As the user wrote it, a subfolder appended with a slash."""

    repeats: int
    samples: tuple[Sample, ...]
    missing_captions: int
    """Images whose caption file is missing or empty."""

    note: str = ""
    """Said when `num_repeats` overrides the folder's name."""


@dataclass(frozen=True)
class Scan:
    """Everything the datasets of a job hold, in a fixed order."""

    folders: tuple[FolderInfo, ...]
    notes: tuple[str, ...]
    """What the user should know: ignored files and why, overridden repeats, damaged colour profiles."""

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        return tuple(sample for folder in self.folders for sample in folder.samples)

    def dataset_of(self, sample: Sample) -> int:
        """Index in `datasets` of the entry this sample came from."""
        return self._datasets[id(sample)]

    @cached_property
    def _datasets(self) -> dict[int, int]:
        # By identity: two entries over one folder (at two sizes, say) give samples that compare equal.
        return {id(sample): folder.dataset for folder in self.folders for sample in folder.samples}


def scan_datasets(datasets: Sequence[Any], trigger_word: str | None) -> Scan:
    """Samples of all `datasets` sections, every image read once. Raises DataErrors naming every offender."""
    scanner = _Scanner()
    drafts = [draft for index, dataset in enumerate(datasets) for draft in scanner.dataset(index, dataset)]
    for draft in drafts:
        scanner.pair(draft)
    sizes = scanner.inspect([path for draft in drafts for entry in draft.entries for path in entry.paths()])
    if scanner.mistakes:
        raise DataErrors(list(dict.fromkeys(scanner.mistakes)))
    folders = tuple(draft.finish(sizes, trigger_word) for draft in drafts)
    return Scan(folders, (*filter(None, (folder.note for folder in folders)), *scanner.notes))


@dataclass(frozen=True)
class _Entry:
    """An image with what was found for it."""

    image: Path
    caption: str
    controls: tuple[Path, ...]

    def paths(self) -> tuple[Path, ...]:
        return (self.image, *self.controls)


class _Draft:
    """A folder of images while it is being scanned."""

    def __init__(self, index: int, dataset: Any, listing: Listing, subfolder: str | None) -> None:
        self.index, self.dataset, self.listing, self.subfolder = index, dataset, listing, subfolder
        self.entries: list[_Entry] = []
        # abspath, not resolve: "." gets its name, a symlink keeps the one the user gave it.
        match = _REPEATS.match(os.path.basename(os.path.abspath(listing.folder)))
        self.named_repeats = int(match[1]) if match else None

    def finish(self, sizes: dict[Path, Size], trigger_word: str | None) -> FolderInfo:
        """The samples, once the size of every image is known."""
        dataset, folder = self.dataset, self.listing.folder
        repeats = dataset.num_repeats or self.named_repeats or 1
        trigger = dataset.trigger_word or trigger_word or ""
        rules = CaptionRules(dataset.caption_dropout_rate, dataset.shuffle_tokens, dataset.keep_tokens, trigger)
        samples = tuple(
            Sample(
                image=entry.image,
                caption=inject_trigger(entry.caption or dataset.default_caption or "", trigger).strip(),
                repeats=repeats,
                size=sizes[entry.image],
                folder=folder,
                controls=entry.controls,
                rules=rules,
                background=dataset.background,
            )
            for entry in self.entries
        )
        note = ""
        if dataset.num_repeats and self.named_repeats not in (None, dataset.num_repeats):
            unused = f"the {self.named_repeats} in the folder's name is not used"
            note = f"{folder}: num_repeats: {dataset.num_repeats} is given; {unused}"
        missing = sum(not entry.caption for entry in self.entries)
        return FolderInfo(self.index, folder, repeats, samples, missing, note)


class _Scanner:
    """Collects mistakes and notes over all datasets, so that they come at once."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self.notes: list[str] = []
        self.references = ReferenceFinder(self.mistakes)

    def dataset(self, index: int, dataset: Any) -> Iterator[_Draft]:
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
            self.notes.append(f"{folder}: subfolders without images ignored: {_names(empty)}")

    def _draft(self, index: int, dataset: Any, listing: Listing, subfolder: str | None) -> Iterator[_Draft]:
        draft = _Draft(index, dataset, listing, subfolder)
        if draft.named_repeats == 0 and not dataset.num_repeats:
            self._mistake(listing.folder, "its name asks for 0 repeats. Give 1 or more, or take it out")
            return
        self._note_ignored(listing, dataset.caption_ext)
        if subfolders := _subfolders(listing, dataset):
            self.notes.append(f"{listing.folder}: holds images itself; subfolders ignored: {_names(subfolders)}")
        yield draft

    def pair(self, draft: _Draft) -> None:
        """Finds caption and references of every image of the folder."""
        for stem, files in draft.listing.images.items():
            if len(files) > 1:
                names = _names(path.name for path in files)
                self._mistake(
                    join(draft.listing.folder, files[0].name),
                    f"images share the stem {stem!r}: {names}. Rename one",
                )
            try:
                caption = find_caption(draft.listing, stem, draft.dataset.caption_ext)
            except CaptionError as error:
                self._mistake(str(error.path), error.reason)
                caption = ""
            except OSError as error:
                self._mistake(str(files[0]), f"its caption cannot be read: {error}")
                caption = ""
            controls = self.references.find(files[0], stem, draft.dataset, draft.subfolder)
            draft.entries += [_Entry(path, caption, controls) for path in files]

    def inspect(self, paths: Sequence[Path]) -> dict[Path, Size]:
        """Reads every file once, on a few threads; sizes of the usable ones."""

        def look(path: Path) -> tuple[Size | None, list[str], str]:
            notes: list[str] = []
            try:
                return inspect_image(path, notes.append), notes, ""
            except ImageError as error:
                return None, notes, error.reason

        unique = list(dict.fromkeys(paths))
        sizes: dict[Path, Size] = {}
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for path, (size, notes, reason) in zip(unique, pool.map(look, unique), strict=True):
                self.notes += [f"{path}: {note}" for note in notes]
                if size is None:
                    self._mistake(str(path), reason)
                else:
                    sizes[path] = size
        return sizes

    def _note_ignored(self, listing: Listing, caption_ext: Sequence[str]) -> None:
        """One note per reason for the files of an image folder that are not used."""
        ignored: dict[str, list[str]] = {}
        for name, path in listing.files.items():
            reason = _why_ignored(name, path, listing, caption_ext)
            if reason:
                ignored.setdefault(reason, []).append(path.name)
        for reason, names in ignored.items():
            self.notes.append(f"{listing.folder}: ignored, {reason}: {_names(names)}")

    def _list(self, folder: str) -> Listing | None:
        try:
            return list_folder(folder)
        except OSError as error:
            self._mistake(folder, f"cannot be read as a folder: {error.strerror or error}")
            return None

    def _mistake(self, place: str, message: str) -> None:
        self.mistakes.append(Mistake(place, message))


def _subfolders(listing: Listing, dataset: Any) -> list[str]:
    """Subfolders without those that hold the dataset's references."""
    controls = {same_place(control) for control in dataset.control_path}
    return [name for name in listing.subfolders if same_place(join(listing.folder, name)) not in controls]


def _why_ignored(name: str, path: Path, listing: Listing, caption_ext: Sequence[str]) -> str:
    """Why a file that is no image is not used; '' for the caption of an image."""
    suffix = path.suffix.lower()
    if suffix in _UNREAD_IMAGES:
        return f"{suffix} is not supported (convert to PNG or JPEG)"
    for wanted in caption_ext:
        if name.endswith(wanted.lower()):
            has_image = name.removesuffix(wanted.lower()) in listing.images
            return "" if has_image else "caption without an image"
    if suffix in _TEXT_SUFFIXES and name.removesuffix(suffix) in listing.images:
        return f"not a caption, because caption_ext is {' '.join(caption_ext)}"
    return "not an image"


def _names(names: Sequence[str] | Iterator[str]) -> str:
    """A listing that stays readable for thousands of files."""
    names = list(names)
    more = f" and {len(names) - _LISTED_NAMES} more" if len(names) > _LISTED_NAMES else ""
    return ", ".join(names[:_LISTED_NAMES]) + more
