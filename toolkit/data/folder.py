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
from itertools import chain, groupby, repeat
from typing import Any, NamedTuple

from toolkit.config.dataset import DatasetConfig, area_of
from toolkit.data.captions import (
    TABLES,
    add_prefix,
    caption_files,
    find_captions,
    image_name,
    inject_trigger,
    nearly_placeholders,
    read_captions_file,
    usual_word,
)
from toolkit.data.directory import DirectoryListing, ImageFile, join, real_path, split_suffix
from toolkit.data.image_probe import notes_of, probe_images
from toolkit.data.images import CLEAR, HAS_HEIF, HEIF_SUFFIXES, IMAGE_SUFFIXES, reference_error
from toolkit.data.scan_cache import ScanCache
from toolkit.data.types import NO_FLIP, PLACEHOLDERS, CaptionRules, Flip, Mask, Sample, Size
from toolkit.errors import DataErrors, InputError

_UNREAD_IMAGES = frozenset({*HEIF_SUFFIXES, ".avif", ".jxl", ".jp2", ".psd", ".svg", ".raw", ".dng", ".exr"})
_TEXT_SUFFIXES = frozenset({".txt", ".caption", ".cap", ".json"})
_NO_CAPTIONS = frozenset({"lint_ignore.txt", "readme.txt", "license.txt", "classes.txt"})
_LISTED_NAMES = 20


class Ignored(NamedTuple):
    """Files of a folder that are not used for one reason."""

    folder: str
    reason: str
    names: list[str]
    remedy: str
    """Empty where nobody expects them to be used."""

    def note(self) -> str:
        """A line of the plan: a warning where there is a remedy."""
        names = shorten(self.names)
        if not self.remedy:
            return f"{self.folder}: ignored, {self.reason}: {names}"
        count = _count(len(self.names), "file")
        return f"warning: {self.folder}: {count} not used, {self.reason}: {names}. {self.remedy}"


def ignored_files(
    listing: DirectoryListing, captions: Sequence[list[str]], caption_ext: Sequence[str]
) -> Iterator[Ignored]:
    """Each reason once. captions: as of `caption_files`; caption_ext: the suffixes they have; none where the
    captions come from one file."""
    if any(len(names) - names.count("") == len(listing.files) for names in captions):
        return  # each has one caption, and there is nothing else
    used = set(chain.from_iterable(captions))
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, written in listing.files.items():
        if written not in used:
            reasons.setdefault(_why_ignored(name, listing, caption_ext), []).append(written)
    for (reason, remedy), names in reasons.items():
        yield Ignored(listing.folder, reason, names, remedy)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _share(number: int, total: int, verbs: tuple[str, str]) -> str:
    return f"{number:,} of {_count(total, 'image')} {verbs[number != 1]}"


def shorten(names: Iterable[str]) -> str:
    """A list that stays readable for thousands of files."""
    names = list(names)
    more = f" and {len(names) - _LISTED_NAMES} more" if len(names) > _LISTED_NAMES else ""
    return ", ".join(names[:_LISTED_NAMES]) + more


def _why_ignored(name: str, listing: DirectoryListing, caption_ext: Sequence[str]) -> tuple[str, str]:
    """The reason, and the remedy."""
    stem, suffix = split_suffix(name)
    if suffix in HEIF_SUFFIXES:
        return f"{suffix} needs another package", "Run: pip install pillow-heif, or convert them to JPEG"
    if suffix in _UNREAD_IMAGES:
        return f"{suffix} is not supported", "Convert them to PNG or JPEG"
    if name.endswith(tuple(map(str.lower, caption_ext))) and name.lower() not in _NO_CAPTIONS:
        in_other_letters = stem.casefold() in map(str.casefold, listing.images)
        reason = "caption of an image whose name has other letters" if in_other_letters else "caption without an image"
        return reason, "Give image and caption the same name, in upper and lower case too"
    if suffix in _TEXT_SUFFIXES and name.removesuffix(suffix) in listing.images:
        if not caption_ext:
            return "not a caption, because captions_file is given", ""
        return f"not a caption, because caption_ext is {' '.join(caption_ext)}", f"Add {suffix} to caption_ext"
    if caption_ext and _table_of(listing, listing.files[name]):
        return "captions of images that have caption files, or another table", "Give one as 'captions_file'"
    return "not an image", ""


def _table_of(listing: DirectoryListing, name: str) -> dict[str, str]:
    """The captions of a table that names images of its folder; else empty."""
    if split_suffix(name)[1] not in TABLES or name in listing.no_files:
        return {}
    table = read_captions_file(listing.path(name), [])
    return table if any(image_name(files[0]) in table for files in listing.images.values()) else {}


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
        self.table, self.table_path = table, dataset.captions_file
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
        if self.table_path is None:
            return caption_files(self.listing, self.dataset.caption_ext)
        folder, name = os.path.split(self.table_path)
        return [[name]] if real_path(folder or ".") == real_path(self.listing.folder) else []

    def table_names(self) -> list[str]:
        """What the images are called in `captions_file`."""
        inside = f"{self.subfolder}/" if self.subfolder else ""
        return [image_name(inside + files[0]) for files in self.listing.images.values()]

    def find_table(self) -> Iterator[str]:
        """Where no image has a caption file: takes the captions of the only table in the folder that names images.
        Yields a note of it."""
        if self.table is not None or any(any(names) for names in self.caption_files):
            return
        listing = self.listing
        tables = {name: table for name in listing.files.values() if (table := _table_of(listing, name))}
        if len(tables) == 1:
            ((name, table),) = tables.items()
            prefix = f"{self.subfolder}/" if self.subfolder else ""
            self.table_path = listing.path(name)
            self.table = {prefix + name: caption for name, caption in table.items()}
            self.caption_files = self._caption_files()
            yield f"{listing.folder}: no caption files: captions are read from {self.table_path}"

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
        if read_captions:
            for what in self._check_captions(dataset.trigger_word or trigger_word or ""):
                yield f"warning: {listing.folder}: {what}"
        if not dataset.alpha_mask:
            clear = [name for (name,) in listing.images.values() if CLEAR in listing.facts[name].notes]
            if clear:
                what = _share(len(clear), len(self.captions), ("is", "are"))
                outcome = f"fully transparent and trained as {dataset.background} alone: {shorten(clear)}"
                yield f"warning: {listing.folder}: {what} {outcome}. Export them once more, or remove them"
        resolution, facts = min(dataset.resolution, key=area_of), listing.facts
        sizes = {facts[name].size for (name,) in listing.images.values()}  # few, of however many images
        if small := {size for size in sizes if 4 * size.width * size.height < area_of(resolution)}:
            found = [(name, facts[name].size) for (name,) in listing.images.values() if facts[name].size in small]
            what = f"smaller than half of 'resolution: {resolution}', and not enlarged"
            names = shorten(f"{name} ({size.width}x{size.height})" for name, size in found)
            yield f"warning: {listing.folder}: {len(found)} of {len(self.captions)} images are {what}: {names}"

    def _check_captions(self, trigger: str) -> Iterator[str]:
        """What is rarely meant in the captions of this folder: count, names, remedy."""
        dataset, captions = self.dataset, self.captions
        used = [add_prefix(caption or dataset.default_caption or "", dataset.caption_prefix) for caption in captions]
        names = [files[0] for files in self.listing.images.values()]

        missing = [name for name, text in zip(names, used, strict=True) if not text]
        if missing and not dataset.is_reg and (not trigger or len(missing) < len(used)):
            outcome = f"with {trigger!r} alone" if trigger else "with an empty prompt, as there is no trigger_word"
            what = f"{_share(len(missing), len(used), ('has', 'have'))} no caption ({shorten(missing)})"
            first = split_suffix(missing[0])[0] + dataset.caption_ext[0]
            remedy = f"Write {first}{' etc.' * (len(missing) > 1)}, or give 'default_caption'"
            yield f"{what} and {'train' if len(missing) > 1 else 'trains'} {outcome}. {remedy}"
        together = "\n".join(used)
        literal = [each for each in PLACEHOLDERS if each in together and not trigger]
        for placeholder in (*literal, *nearly_placeholders(together)):
            held = [name for name, text in zip(names, used, strict=True) if placeholder in text]
            remedy = "Give the job a 'trigger_word'" if placeholder in PLACEHOLDERS else f"Write '{PLACEHOLDERS[0]}'"
            what = f"{_count(len(held), 'caption')} with '{placeholder}', which nothing replaces: {shorten(held)}"
            yield f"{what}. {remedy}"
        if not trigger and not dataset.is_reg and not dataset.control_path and not dataset.caption_prefix:
            word, count = usual_word([text for text in captions if text])
            if word and word not in PLACEHOLDERS and word not in nearly_placeholders(word):
                what = f"{count} of {len(used)} captions begin with {word!r}, and there is no trigger_word"
                yield f"{what}. If it is yours, give 'trigger_word: {word}'"

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

    unused: tuple[tuple[str, str], ...] = ()
    """Files that are not used though they seem meant to be, and why."""

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
    scanner = _Scanner(scan_cache or ScanCache(), read_captions)
    drafts = []
    for index, dataset in enumerate(datasets):
        own = [*scanner.drafts(index, dataset)]
        for path, with_table in groupby(own, key=lambda draft: draft.table_path):
            scanner.compare_table(path, [*with_table])
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
    return DatasetScan(folders, notes, tuple(scanner.unused), scanner.scan_cache)


class _Scanner:
    """Collects errors and notes over all datasets, so that they come at once."""

    def __init__(self, scan_cache: ScanCache, read_captions: bool) -> None:
        self.scan_cache, self.read_captions = scan_cache, read_captions
        self.mistakes: list[InputError] = []
        self.notes: list[str] = []
        self.unused: list[tuple[str, str]] = []
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
            has_heif = not HEIF_SUFFIXES.isdisjoint(split_suffix(name)[1] for name in top.files)
            remedy = ". For HEIC run: pip install pillow-heif" if has_heif and not HAS_HEIF else ""
            self._mistake(folder, f"holds no images (seen: {top.describe()}). Supported: {supported}{remedy}")
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

    def compare_table(self, path: str | None, drafts: Sequence[FolderBuilder]) -> None:
        """Notes images that have no line in a table of captions, and lines that have no image."""
        table = drafts[0].table
        if not table:  # an empty one is one that could not be read, or leaves each image to be counted
            return
        folder = drafts[0].dataset.folder_path
        names = dict.fromkeys(chain.from_iterable(draft.table_names() for draft in drafts))
        if unnamed := [name for name in names if name not in table]:
            what = f"{len(unnamed)} of {len(names)} images have no line in {path}"
            self.notes.append(f"{folder}: {what}: {shorten(unnamed)}")
        if unused := [name for name in table if name not in names]:
            what = f"{len(unused)} of {len(table)} lines name no image of {folder}"
            self.notes.append(f"{path}: {what}: {shorten(unused)}")

    def _draft(self, draft: FolderBuilder) -> Iterator[FolderBuilder]:
        dataset, listing = draft.dataset, draft.listing
        if draft.named_repeats == 0 and not dataset.num_repeats:
            self._mistake(listing.folder, "its name asks for 0 repeats. Give 1 or more, or take it out")
            return
        self.notes += draft.find_table() if self.read_captions else ()
        caption_ext = dataset.caption_ext if draft.table is None else ()
        for ignored in ignored_files(listing, draft.caption_files, caption_ext):
            self.notes.append(ignored.note())
            if ignored.remedy:
                self.unused += [(listing.path(name), f"{ignored.reason}. {ignored.remedy}") for name in ignored.names]
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
