"""Folders of images to samples: repeats from folder names, captions, references and masks matched by name.

A dataset is one folder of images, or a folder whose direct subfolders hold them. A leading
`<int>_` in the name of the folder that holds the images is how often each is used per epoch.
Every offending file is collected before anything is reported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from toolkit.contracts import CaptionRules, Flip, Mask, Sample, Size
from toolkit.data.captionfile import CaptionError, find_caption
from toolkit.data.captions import inject_trigger
from toolkit.data.digests import length_of
from toolkit.data.glance import glance
from toolkit.data.images import IMAGE_SUFFIXES, ImageError, ImageFacts, inspect_image
from toolkit.data.listing import Listing, Picture, join, same_place, split_suffix
from toolkit.data.manifest import Manifest
from toolkit.data.references import PartnerFinder
from toolkit.errors import DataErrors, Mistake

_REPEATS = re.compile(r"([0-9]+)_")
_UNREAD_IMAGES = frozenset({".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".raw", ".dng", ".exr"})
_TEXT_SUFFIXES = frozenset({".txt", ".caption", ".cap", ".json"})
_LISTED_NAMES = 20

READ_WHOLE = 2000
"""Up to so many pictures that are not known yet are read whole by the scan. Of more, it reads headers and ends; what is
damaged in between is then found, and all of it named, when the pictures are encoded."""


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

    is_reg: bool = False
    """Whether its images are regularisation images."""


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
        return tuple(sample for folder in self.folders for sample in folder.samples)


def scan_datasets(
    datasets: Sequence[Any], trigger_word: str | None, reg_weight: float = 1.0, manifest: Manifest | None = None
) -> Scan:
    """Samples of all `datasets` sections, each file read once. Raises DataErrors naming every offender.

    reg_weight: factor on the loss of regularisation images. manifest: what earlier scans learned; it is added to.
    It changes how long the scan takes, not what it finds.
    """
    scanner = _Scanner(manifest or Manifest())
    drafts = [draft for index, dataset in enumerate(datasets) for draft in scanner.dataset(index, dataset)]
    for draft in drafts:
        scanner.pair(draft)
    scanner.inspect(picture for draft in drafts for entry in draft.entries for picture in entry.pictures())
    if scanner.mistakes:
        raise DataErrors(list(dict.fromkeys(scanner.mistakes)))
    for draft in drafts:
        scanner.judge_masks(draft)
    folders = tuple(draft.finish(trigger_word, reg_weight) for draft in drafts)
    notes = (*filter(None, (folder.note for folder in folders)), *scanner.notes)
    return Scan(folders, notes, scanner.manifest)


@dataclass(slots=True)
class _Entry:
    """An image with what was found for it."""

    image: Picture
    caption: str
    controls: tuple[Picture, ...]
    mask: Picture | None
    """A mask picture; the image itself when its own opacity is the mask."""

    def pictures(self) -> tuple[Picture, ...]:
        return (self.image, *self.controls, self.mask) if self.mask else (self.image, *self.controls)


class _Draft:
    """A folder of images while it is being scanned."""

    def __init__(self, index: int, dataset: Any, listing: Listing, subfolder: str | None) -> None:
        self.index, self.dataset, self.listing, self.subfolder = index, dataset, listing, subfolder
        self.entries: list[_Entry] = []
        # abspath, not resolve: "." gets its name, a symlink keeps the one the user gave it.
        match = _REPEATS.match(os.path.basename(os.path.abspath(listing.folder)))
        self.named_repeats = int(match[1]) if match else None

    def finish(self, trigger_word: str | None, reg_weight: float) -> FolderInfo:
        """The samples, once the size of every image is known."""
        dataset, folder = self.dataset, self.listing.folder
        repeats = dataset.num_repeats or self.named_repeats or 1
        trigger = dataset.trigger_word or trigger_word or ""
        rules = CaptionRules(dataset.caption_dropout_rate, dataset.shuffle_tokens, dataset.keep_tokens, trigger)
        add_trigger = not dataset.is_reg  # they show what the trigger word is not to mean
        flips = [Flip(x, y) for y in sorted({False, dataset.flip_y}) for x in sorted({False, dataset.flip_x})]
        weight = dataset.loss_multiplier * (reg_weight if dataset.is_reg else 1.0)
        samples = []
        for entry in self.entries:
            image, mask = entry.image.path, self._mask(entry)
            caption = inject_trigger(entry.caption or dataset.default_caption or "", trigger, add_trigger).strip()
            controls = tuple(picture.path for picture in entry.controls)
            samples += [
                Sample(
                    image=image,
                    caption=caption,
                    repeats=repeats,
                    size=entry.image.facts.size,
                    folder=folder,
                    controls=controls,
                    rules=rules,
                    mask=mask,
                    loss_weight=weight,
                    background=dataset.background,
                    flip=flip,
                    dataset=self.index,
                )
                for flip in flips
            ]
        note = ""
        if dataset.num_repeats and self.named_repeats not in (None, dataset.num_repeats):
            unused = f"the {self.named_repeats} in the folder's name is not used"
            note = f"{folder}: num_repeats: {dataset.num_repeats} is given; {unused}"
        missing = sum(not entry.caption for entry in self.entries)
        return FolderInfo(self.index, folder, repeats, tuple(samples), missing, note, dataset.is_reg)

    def _mask(self, entry: _Entry) -> Mask | None:
        dataset = self.dataset
        if entry.mask is None:
            return None
        return Mask(entry.mask.path, dataset.alpha_mask, dataset.mask_min_value, dataset.invert_mask)


class _Scanner:
    """Collects mistakes and notes over all datasets, so that they come at once."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.mistakes: list[Mistake] = []
        self.notes: list[str] = []
        self.partners = PartnerFinder(self.mistakes, manifest.listing)

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
        """Finds caption, references and mask of every image of the folder."""
        for stem, files in draft.listing.images.items():
            if len(files) > 1:
                names = _names(files)
                self._mistake(
                    join(draft.listing.folder, files[0]),
                    f"images share the stem {stem!r}: {names}. Rename one",
                )
            try:
                caption = find_caption(draft.listing, stem, draft.dataset.caption_ext)
            except CaptionError as error:
                self._mistake(str(error.path), error.reason)
                caption = ""
            except OSError as error:
                self._mistake(str(draft.listing.path(files[0])), f"its caption cannot be read: {error}")
                caption = ""
            images = [Picture(draft.listing, name) for name in files]
            controls = self.partners.references(images[0], stem, draft.dataset, draft.subfolder)
            mask = self.partners.mask(images[0], stem, draft.dataset, draft.subfolder)
            draft.entries += [
                _Entry(image, caption, controls, image if draft.dataset.alpha_mask else mask) for image in images
            ]

    def judge_masks(self, draft: _Draft) -> None:
        """Notes images that have no transparency to be their mask, and masks of another shape than their image."""
        opaque, stretched = [], []
        for entry in draft.entries:
            if draft.dataset.alpha_mask and not entry.image.facts.alpha:
                entry.mask = None
                opaque.append(entry.image.name)
            elif entry.mask and not _alike(entry.mask.facts.size, entry.image.facts.size):
                stretched.append(entry.image.name)
        folder = draft.listing.folder
        if opaque:
            self.notes.append(f"{folder}: alpha_mask: no transparency, so the whole image counts: {_names(opaque)}")
        if stretched:
            self.notes.append(f"{folder}: the mask has another shape and is stretched over: {_names(stretched)}")

    def inspect(self, pictures: Iterable[Picture]) -> None:
        """Learns the facts of every picture, each read once, on a few threads."""
        unique = dict.fromkeys(pictures)
        unread = [picture for picture in unique if (facts := picture.facts) is None or not facts.checked]
        look = _read_whole
        if len(unread) > READ_WHOLE:
            unread, look = [picture for picture in unread if picture.facts is None], _read_ends
        reasons: dict[Picture, str] = {}
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for learned in pool.map(lambda some: [(picture, *look(picture)) for picture in some], _portions(unread)):
                for picture, facts, reason in learned:
                    if facts:
                        picture.listing.facts[picture.name] = facts
                    else:
                        reasons[picture] = reason
        for picture in unique:
            if reasons and picture in reasons:
                self._mistake(str(picture.path), reasons[picture])
            elif picture.facts.notes:
                self.notes += [f"{picture.path}: {note}" for note in picture.facts.notes]

    def _note_ignored(self, listing: Listing, caption_ext: Sequence[str]) -> None:
        """One note per reason for the files of an image folder that are not used."""
        ignored: dict[str, list[str]] = {}
        for name, written in listing.files.items():
            reason = _why_ignored(name, listing, caption_ext)
            if reason:
                ignored.setdefault(reason, []).append(written)
        for reason, names in ignored.items():
            self.notes.append(f"{listing.folder}: ignored, {reason}: {_names(names)}")

    def _list(self, folder: str) -> Listing | None:
        try:
            return self.manifest.listing(folder)
        except OSError as error:
            self._mistake(folder, f"cannot be read as a folder: {error.strerror or error}")
            return None

    def _mistake(self, place: str, message: str) -> None:
        self.mistakes.append(Mistake(place, message))


def _read_whole(picture: Picture) -> tuple[ImageFacts | None, str]:
    """Its facts, or None and what is wrong with it."""
    try:
        return inspect_image(picture.path), ""
    except ImageError as error:
        return None, error.reason


def _read_ends(picture: Picture) -> tuple[ImageFacts | None, str]:
    """The same without reading the pixels, where the header can be relied on."""
    listing, name = picture
    version = listing.versions.get(name)
    try:
        facts = glance(listing.text_path(name), length_of(version)) if version else None
    except OSError:
        facts = None  # the message is the decoder's
    return (facts, "") if facts else _read_whole(picture)


def _portions(pictures: Sequence[Picture]) -> Iterator[Sequence[Picture]]:
    """Some at a time: to hand over a picture takes as long as to read its header."""
    size = 16 if len(pictures) <= READ_WHOLE else 500
    return (pictures[start : start + size] for start in range(0, len(pictures), size))


def _alike(mask: Size, image: Size) -> bool:
    """Whether the aspect ratios differ by no more than rounding to pixels explains, 2 %."""
    return abs(mask.width * image.height / (mask.height * image.width) - 1) <= 0.02


def _subfolders(listing: Listing, dataset: Any) -> list[str]:
    """Subfolders without those that hold the dataset's references and masks."""
    partners = {same_place(folder) for folder in (*dataset.control_path, dataset.mask_path) if folder}
    return [name for name in listing.subfolders if same_place(join(listing.folder, name)) not in partners]


def _why_ignored(name: str, listing: Listing, caption_ext: Sequence[str]) -> str:
    """Why a file that is no image is not used; '' for the caption of an image."""
    suffix = split_suffix(name)[1]
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
