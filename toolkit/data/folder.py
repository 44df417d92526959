"""From folders of images to samples: repeats from folder names; captions, control images and masks matched by name.

A dataset is one folder of images, or a folder whose direct subfolders hold them. A leading
`<int>_` in the name of the folder that holds the images is how often each is used per epoch.
Every offending file is collected before anything is reported, and files that are not used are listed with the reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import chain, repeat
from typing import Any

from toolkit.config.dataset import DatasetConfig, area_of
from toolkit.data.captions import (
    add_prefix,
    caption_files,
    find_captions,
    image_name,
    inject_trigger,
    read_captions_file,
)
from toolkit.data.directory import DirectoryListing, ImageFile, join, real_path, split_suffix
from toolkit.data.image_probe import notes_of, probe_images
from toolkit.data.images import IMAGE_SUFFIXES, reference_error
from toolkit.data.scan_cache import ScanCache
from toolkit.errors import DataErrors, InputError
from toolkit.interfaces import NO_FLIP, PLACEHOLDERS, CaptionRules, Flip, Mask, Sample, Size

_UNREAD_IMAGES = frozenset({".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".raw", ".dng", ".exr"})
_TEXT_SUFFIXES = frozenset({".txt", ".caption", ".cap", ".json"})
_LISTED_NAMES = 20


def ignored_files(
    listing: DirectoryListing, captions: Sequence[list[str]], caption_ext: Sequence[str]
) -> Iterator[str]:
    """One note per reason. captions: as of `caption_files`; caption_ext: the suffixes they have; none where the
    captions come from one file."""
    if any(len(names) - names.count("") == len(listing.files) for names in captions):
        return  # each has one caption, and there is nothing else
    used = set(chain.from_iterable(captions))
    reasons: dict[str, list[str]] = {}
    for name, written in listing.files.items():
        if written not in used:
            reasons.setdefault(_why_ignored(name, listing, caption_ext), []).append(written)
    for reason, names in reasons.items():
        yield f"{listing.folder}: ignored, {reason}: {shorten(names)}"


def shorten(names: Iterable[str]) -> str:
    """A list that stays readable for thousands of files."""
    names = list(names)
    more = f" and {len(names) - _LISTED_NAMES} more" if len(names) > _LISTED_NAMES else ""
    return ", ".join(names[:_LISTED_NAMES]) + more


def _why_ignored(name: str, listing: DirectoryListing, caption_ext: Sequence[str]) -> str:
    suffix = split_suffix(name)[1]
    if suffix in _UNREAD_IMAGES:
        return f"{suffix} is not supported (convert to PNG or JPEG)"
    if name.endswith(tuple(map(str.lower, caption_ext))):
        return "caption without an image"
    if suffix in _TEXT_SUFFIXES and name.removesuffix(suffix) in listing.images:
        given = f"caption_ext is {' '.join(caption_ext)}" if caption_ext else "captions_file is given"
        return f"not a caption, because {given}"
    return "not an image"


_NAMES = {"control": "reference", "mask": "mask"}
"""Prefix of a folder's key -> name of its images in messages."""


class ControlImageFinder:
    """Finds images and appends errors to `mistakes`. Each folder is read once.

    For a target in a subfolder of the dataset, the subfolder of the same name in each control folder is searched first,
    then the control folder itself.
    """

    def __init__(self, mistakes: list[InputError], list_folder: Callable[[str], DirectoryListing]) -> None:
        self._mistakes = mistakes
        self._list_folder = list_folder
        self._listing = cache(self._read)

    def references(
        self, image: ImageFile, stem: str, dataset: DatasetConfig, subfolder: str | None
    ) -> tuple[ImageFile, ...]:
        """The control images of one image.

        With `control_optional` a missing slot is skipped and later ones move up: slot 2 alone becomes the only control
        image.
        """
        slots = [
            self._find(image, stem, folder, subfolder, "control", dataset.control_optional)
            for folder in dataset.control_path
        ]
        return tuple(picture for picture in slots if picture)

    def mask(self, image: ImageFile, stem: str, dataset: DatasetConfig, subfolder: str | None) -> ImageFile | None:
        """The mask of one image; None when it is absent and `mask_optional`."""
        assert dataset.mask_path is not None  # only called for datasets with a mask folder
        return self._find(image, stem, dataset.mask_path, subfolder, "mask", dataset.mask_optional)

    def _find(
        self, image: ImageFile, stem: str, folder: str, subfolder: str | None, key: str, optional: bool
    ) -> ImageFile | None:
        """The image of this stem, or None."""
        places = [join(folder, subfolder), folder] if subfolder else [folder]
        listings = [listing for place in places if (listing := self._listing(place, place == folder, key))]
        found = next((listing for listing in listings if stem in listing.images), None)
        if found:
            first, *more = found.images[stem]
            if not more:
                return ImageFile(found, first)
            names = ", ".join(found.images[stem])
            self._mistake(found.path(first), f"{_NAMES[key]}s share the stem {stem!r}: {names}. Rename one")
        elif listings and not optional:
            searched = " or ".join(repr(listing.folder) for listing in listings)
            self._mistake(image.path, f"has no {_NAMES[key]} {stem!r} in {searched}. Add it, or set {key}_optional")
        return None

    def _read(self, folder: str, required: bool, key: str) -> DirectoryListing | None:
        if not required and not os.path.isdir(os.path.expanduser(folder)):
            return None
        try:
            return self._list_folder(folder)
        except OSError as error:
            self._mistake(folder, f"{key}_path cannot be read as a folder: {error.strerror or error}")
            return None

    def _mistake(self, place: str, message: str) -> None:
        self._mistakes.append(InputError(place, message))


_REPEATS = re.compile(r"([0-9]+)_")
_NEARLY_REPEATS = re.compile(r"([0-9]{1,3})[ .-]+[^\W\d]")  # `40 char`, `40-char`; not the date 2024-05-01


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
    """Images whose caption is missing or empty."""

    note: str = ""
    """A line for the user when `num_repeats` overrides the folder's name."""

    is_reg: bool = False
    """Whether its images are regularisation images."""


class FolderBuilder:
    """Captions, control images and masks of one folder, by the stems of the images."""

    def __init__(
        self,
        index: int,
        dataset: DatasetConfig,
        listing: DirectoryListing,
        subfolder: str | None,
        table: Mapping[str, str] | None = None,
    ) -> None:
        """table: the captions of `captions_file`; None: they are in files beside the images."""
        self.index, self.dataset, self.listing, self.subfolder = index, dataset, listing, subfolder
        self.table = table
        # abspath, not resolve: "." gets its name, a symlink keeps the one the user gave it.
        match = _REPEATS.match(os.path.basename(os.path.abspath(listing.folder)))
        self.named_repeats = int(match[1]) if match else None
        match = _NEARLY_REPEATS.match(os.path.basename(os.path.abspath(listing.folder)))
        self.nearly_named_repeats = match[1] if match else ""
        self.caption_files = self._caption_files()
        self.captions: list[str] = []
        """Of each image, in their order; '' for none."""
        self.controls: dict[str, tuple[ImageFile, ...]] = {}
        self.masks: dict[str, ImageFile] = {}
        """Mask images; the image itself where its own opacity is the mask."""

    def _caption_files(self) -> list[list[str]]:
        """The files of this folder that are read for captions."""
        if self.dataset.captions_file is None:
            return caption_files(self.listing, self.dataset.caption_ext)
        folder, name = os.path.split(self.dataset.captions_file)
        return [[name]] if real_path(folder or ".") == real_path(self.listing.folder) else []

    def table_names(self) -> list[str]:
        """What the images are called in `captions_file`."""
        inside = f"{self.subfolder}/" if self.subfolder else ""
        return [image_name(inside + files[0]) for files in self.listing.images.values()]

    def match_files(self, partners: ControlImageFinder, mistakes: list[InputError]) -> None:
        """Finds caption, control images and mask of every image."""
        listing, dataset = self.listing, self.dataset
        for stem, files in listing.images.items():
            if len(files) > 1:
                reason = f"images share the stem {stem!r}: {shorten(files)}. Rename one"
                mistakes.append(InputError(join(listing.folder, files[0]), reason))
        if self.table is None:
            self.captions = find_captions(listing, self.caption_files, mistakes)
        else:
            self.captions = [self.table.get(name, "") for name in self.table_names()]
        if dataset.control_path:
            self.controls = {
                stem: partners.references(image, stem, dataset, self.subfolder) for stem, image in self._images()
            }
        if dataset.alpha_mask:
            self.masks = dict(self._images())
        elif dataset.mask_path:
            masks = {stem: partners.mask(image, stem, dataset, self.subfolder) for stem, image in self._images()}
            self.masks = {stem: mask for stem, mask in masks.items() if mask}

    def _images(self) -> Iterator[tuple[str, ImageFile]]:
        return ((stem, ImageFile(self.listing, files[0])) for stem, files in self.listing.images.items())

    def pictures(self) -> Iterator[tuple[DirectoryListing, Iterable[str]]]:
        """All images that are used: their folders and names."""
        yield self.listing, chain.from_iterable(self.listing.images.values())
        for listing, name in chain(*self.controls.values(), self.masks.values()):
            yield listing, (name,)

    def leave_out(self, places: Collection[str]) -> None:
        """Forgets the images that have an error: in their own file, or in one that belongs to them."""

        def is_good(stem: str, files: tuple[str, ...]) -> bool:
            partners = (*self.controls.get(stem, ()), *((self.masks[stem],) if stem in self.masks else ()))
            used = (self.listing.path(files[0]), *(picture.path for picture in partners))
            return len(files) == 1 and not any(path in places for path in used)

        images = self.listing.images
        good = {stem: files for stem, files in images.items() if is_good(stem, files)}
        self.captions = [text for stem, text in zip(images, self.captions, strict=True) if stem in good]
        self.masks = {stem: mask for stem, mask in self.masks.items() if stem in good}
        self.listing = replace(self.listing, images=good)

    def check_masks(self) -> Iterator[str]:
        """Notes images that have no transparency to be their mask, and masks of another shape than their image.

        From here on the facts of every image are known, and one file has each stem.
        """
        opaque, stretched = [], []
        for stem, mask in list(self.masks.items()):
            (name,) = self.listing.images[stem]
            assert mask.facts is not None  # known from here on, see above
            if self.dataset.alpha_mask and not mask.facts.alpha:
                del self.masks[stem]
                opaque.append(name)
            elif not _same_aspect(mask.facts.size, self.listing.facts[name].size):
                stretched.append(name)
        folder = self.listing.folder
        if opaque:
            yield f"{folder}: alpha_mask: no transparency, so the whole image counts: {shorten(opaque)}"
        if stretched:
            yield f"{folder}: the mask has another shape and is stretched over: {shorten(stretched)}"

    def check_intent(self, trigger_word: str | None, read_captions: bool) -> Iterator[str]:
        """Warnings of what is allowed but rarely meant. The facts of every image are known."""
        dataset, listing = self.dataset, self.listing
        if (count := self.nearly_named_repeats) and not dataset.num_repeats:
            remedy = f"For {count} repeats begin its name with '{count}_', or give 'num_repeats: {count}'"
            yield f"warning: {listing.folder}: each image is used once per epoch. {remedy}"
        if read_captions and not (dataset.trigger_word or trigger_word):
            prefix, default = dataset.caption_prefix, dataset.default_caption or ""
            used = [add_prefix(caption or default, prefix) for caption in self.captions]
            if (empty := used.count("")) and not dataset.is_reg:
                what = f"{empty} of {len(used)} images have no caption, and there is no trigger_word"
                yield f"warning: {listing.folder}: {what}: they train with an empty prompt"
            for placeholder in PLACEHOLDERS:
                if any(placeholder in caption for caption in used):
                    what = f"captions hold '{placeholder}', and there is no trigger_word to put there"
                    yield f"warning: {listing.folder}: {what}"
        resolution, facts = min(dataset.resolution, key=area_of), listing.facts
        sizes = {facts[name].size for (name,) in listing.images.values()}  # few, of however many images
        if small := {size for size in sizes if 4 * size.width * size.height < area_of(resolution)}:
            found = [(name, facts[name].size) for (name,) in listing.images.values() if facts[name].size in small]
            what = f"smaller than half of 'resolution: {resolution}', and not enlarged"
            names = shorten(f"{name} ({size.width}x{size.height})" for name, size in found)
            yield f"warning: {listing.folder}: {len(found)} of {len(self.captions)} images are {what}: {names}"

    def build_samples(self, trigger_word: str | None, reg_weight: float) -> FolderInfo:
        """The samples."""
        dataset, listing = self.dataset, self.listing
        repeats = dataset.num_repeats or self.named_repeats or 1
        trigger = dataset.trigger_word or trigger_word or ""
        prefix = inject_trigger(dataset.caption_prefix, trigger, add=False).strip()
        rules = CaptionRules(dataset.caption_dropout_rate, dataset.shuffle_tokens, dataset.keep_tokens, trigger, prefix)
        add_trigger = not dataset.is_reg  # they show what the trigger word is not to mean
        default = dataset.default_caption or ""
        weight = dataset.loss_multiplier * (reg_weight if dataset.is_reg else 1.0)
        controls = {stem: tuple(picture.path for picture in found) for stem, found in self.controls.items()}
        masks = {
            stem: Mask(mask.path, dataset.alpha_mask, dataset.mask_min_value, dataset.invert_mask)
            for stem, mask in self.masks.items()
        }
        names = [name for (name,) in listing.images.values()]
        columns = (
            map(listing.prefix.__add__, names),
            [
                inject_trigger(add_prefix(caption or default, prefix), trigger, add_trigger).strip()
                for caption in self.captions
            ],
            repeat(repeats),
            [listing.facts[name].size for name in names],
            repeat(listing.folder),
            map(controls.get, listing.images, repeat(())),
            repeat(rules),
            map(masks.get, listing.images),
            repeat(weight),
            repeat(dataset.background),
            repeat(NO_FLIP),
            repeat(self.index),
        )
        samples = tuple(map(Sample._make, zip(*columns, strict=False)))  # one by one they take half as long again
        flips = [Flip(x, y) for y in sorted({False, dataset.flip_y}) for x in sorted({False, dataset.flip_x})]
        if flips != [NO_FLIP]:
            samples = tuple(sample._replace(flip=flip) for sample in samples for flip in flips)
        missing = self.captions.count("")
        return FolderInfo(self.index, listing.folder, repeats, samples, missing, self._note(), dataset.is_reg)

    def _note(self) -> str:
        given = self.dataset.num_repeats
        if not given or self.named_repeats in (None, given):
            return ""
        unused = f"the {self.named_repeats} in the folder's name is not used"
        return f"{self.listing.folder}: num_repeats: {given} is given; {unused}"


def _same_aspect(mask: Size, image: Size) -> bool:
    """Whether the aspect ratios differ by no more than rounding to pixels explains, 2 %."""
    return abs(mask.width * image.height / (mask.height * image.width) - 1) <= 0.02


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
    datasets: Sequence[Any],
    trigger_word: str | None,
    reg_weight: float = 1.0,
    scan_cache: ScanCache | None = None,
    forgiven: list[InputError] | None = None,
    read_captions: bool = True,
) -> DatasetScan:
    """Samples of all `datasets` sections, each file read once. Raises DataErrors naming every offender.

    reg_weight: factor on the loss of regularisation images. scan_cache: results of earlier scans, which is updated; it
    makes the scan faster and does not change its result. forgiven: takes the errors instead, and the images that have
    one are left out. read_captions: whether the training does; otherwise nothing is said of missing ones.
    """
    scanner = _Scanner(scan_cache or ScanCache())
    drafts = []
    for index, dataset in enumerate(datasets):
        own = [*scanner.drafts(index, dataset)]
        scanner.compare_table(dataset, own)
        drafts += own
    for draft in drafts:
        draft.match_files(scanner.partners, scanner.mistakes)
    scanner.inspect(drafts)
    if mistakes := list(dict.fromkeys(scanner.mistakes)):
        if forgiven is None:
            raise DataErrors(mistakes)
        forgiven += mistakes
        for draft in drafts:
            draft.leave_out({mistake.place for mistake in mistakes})
    for draft in drafts:
        scanner.notes += draft.check_masks()
        scanner.notes += draft.check_intent(trigger_word, read_captions)
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
        folder, table = dataset.folder_path, None
        if dataset.captions_file is not None:
            table = read_captions_file(dataset.captions_file, self.mistakes)
        top = self._list(folder)
        if top is None:
            return
        if top.images:
            self._refuse_loose_images(top, dataset)
            yield from self._draft(FolderBuilder(index, dataset, top, None, table))
            return
        listings = [(name, self._list(join(folder, name))) for name in _subfolders(top, dataset)]
        filled = [(name, listing) for name, listing in listings if listing and listing.images]
        for name, listing in filled:
            yield from self._draft(FolderBuilder(index, dataset, listing, name, table))
        if not filled:
            supported = ", ".join(sorted(IMAGE_SUFFIXES))
            self._mistake(folder, f"holds no images (seen: {top.describe()}). Supported: {supported}")
            return
        empty = [name for name, listing in listings if listing and not listing.images]
        if empty:
            self.notes.append(f"{folder}: subfolders without images ignored: {shorten(empty)}")

    def _refuse_loose_images(self, top: DirectoryListing, dataset: DatasetConfig) -> None:
        """Images beside subfolders with repeats would be all that is used."""
        named = [name for name in _subfolders(top, dataset) if _REPEATS.match(name)]
        filled = [name for name in named if (listing := self._list(join(top.folder, name))) and listing.images]
        if filled and not _REPEATS.match(os.path.basename(os.path.abspath(top.folder))):
            loose = shorten(chain.from_iterable(top.images.values()))
            what = f"holds images itself ({loose}), so those in {shorten(filled)} would not be used"
            self._mistake(top.folder, f"{what}. Move the loose images away, or give each subfolder as a dataset")

    def inspect(self, drafts: Sequence[FolderBuilder]) -> None:
        """Reads the facts of every image that is used."""
        wanted: dict[DirectoryListing, dict[str, None]] = {}
        for draft in drafts:
            for listing, names in draft.pictures():
                wanted.setdefault(listing, {}).update(dict.fromkeys(names))
        reasons = probe_images(wanted)
        for picture, reason in reasons.items():
            self._mistake(picture.path, reason)
        for picture in chain.from_iterable(chain.from_iterable(draft.controls.values() for draft in drafts)):
            if picture.facts and (reason := reference_error(picture.facts.size)):
                self._mistake(picture.path, reason)
        if not reasons:
            self.notes += notes_of(wanted)

    def compare_table(self, dataset: DatasetConfig, drafts: Sequence[FolderBuilder]) -> None:
        """Notes images that have no line in `captions_file`, and lines that have no image."""
        table = next((draft.table for draft in drafts), None)
        if not table:  # an empty one is one that could not be read, or leaves each image to be counted
            return
        names = dict.fromkeys(chain.from_iterable(draft.table_names() for draft in drafts))
        if unnamed := [name for name in names if name not in table]:
            what = f"{len(unnamed)} of {len(names)} images have no line in {dataset.captions_file}"
            self.notes.append(f"{dataset.folder_path}: {what}: {shorten(unnamed)}")
        if unused := [name for name in table if name not in names]:
            what = f"{len(unused)} of {len(table)} lines name no image of {dataset.folder_path}"
            self.notes.append(f"{dataset.captions_file}: {what}: {shorten(unused)}")

    def _draft(self, draft: FolderBuilder) -> Iterator[FolderBuilder]:
        dataset, listing = draft.dataset, draft.listing
        if draft.named_repeats == 0 and not dataset.num_repeats:
            self._mistake(listing.folder, "its name asks for 0 repeats. Give 1 or more, or take it out")
            return
        caption_ext = dataset.caption_ext if draft.table is None else ()
        self.notes += ignored_files(listing, draft.caption_files, caption_ext)
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
