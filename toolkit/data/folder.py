"""From folders of images to samples: repeats from folder names; captions, control images and masks matched by name.

A dataset is one folder of images, or a folder whose direct subfolders hold them. A leading `<int>_` in the name of the
folder that holds the images is how often each is used per epoch.

A scan has three stages: `_find` matches the names of files, `_check` reads the images, `_build` makes the samples.
Every offending file is collected before anything is reported, and files that are not used are listed with the reason.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, groupby, repeat
from typing import Any, NamedTuple

from toolkit.config.dataset import DatasetConfig, area_of
from toolkit.data.captions import (
    LIST,
    NOTHING_MOVED,
    TABLES,
    TableRow,
    add_prefix,
    caption_files,
    caption_rules,
    captions_of,
    find_captions,
    image_name,
    line_naming,
    lost_folders,
    nearly_placeholders,
    placed,
    read_captions_file,
    trained_caption,
    undecided,
    usual_word,
    with_slashes,
)
from toolkit.data.directory import DirectoryListing, ImageFile, ScanCache, join, real_path, split_suffix
from toolkit.data.images import (
    CLEAR,
    IMAGE_SUFFIXES,
    ImageError,
    ImageInfo,
    inspect_header,
    inspect_image,
    reference_error,
)
from toolkit.data.pairs import Pair, contradictions, pair_mistakes
from toolkit.data.partners import (
    LookedFor,
    Slot,
    captions_beside,
    in_yaml,
    looked_for,
    pair_folders,
    pair_names,
    partners_of,
    shared,
    unpaired,
)
from toolkit.data.threads import thread_map
from toolkit.data.types import NO_FLIP, PLACEHOLDERS, Flip, Mask, Sample
from toolkit.errors import DataErrors, Diagnostic

READ_WHOLE = 2000
"""Up to so many images that are not known yet are read whole by the scan. Of more, it reads headers and ends; what is
damaged in between is then found, and all of it named, when the images are encoded."""

REGULARISATION = (
    "its name says that these are regularisation images, and they are trained as what is to be learned, with the "
    "trigger word. If they are, give the folder as a dataset with 'is_reg: true'"
)
"""Message for a folder that `named_as_regularisation` knows and its dataset does not."""

_UNREAD_IMAGES = frozenset({".jxl", ".jp2", ".psd", ".svg", ".raw", ".dng", ".exr"})
_TEXT_SUFFIXES = frozenset({".txt", ".caption", ".cap", ".json"})
_NO_CAPTIONS = frozenset({"lint_ignore.txt", "readme.txt", "license.txt", "classes.txt"})
_LISTED_NAMES = 20
_LOOKED_INTO = 1000
"""Folders below one without images that are looked into."""

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

    with_alpha: int = 0
    """Images and control images with an alpha channel that is not used as a mask."""


@dataclass(frozen=True)
class DatasetScan:
    """The contents of the datasets of a job, in a fixed order."""

    folders: tuple[FolderInfo, ...]
    notes: tuple[str, ...]
    """What the user should know: ignored files and why, overridden repeats, damaged colour profiles."""

    unused: tuple[tuple[str, str], ...] = ()
    """Files that are not used though they seem meant to be, and why."""

    unpaired: tuple[tuple[str, str], ...] = ()
    """Control images and masks that belong to no image, and why."""

    scan_cache: ScanCache = field(default_factory=ScanCache, compare=False)
    """Known facts of the files. Only a run saves it: a plan writes nothing."""

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        return tuple(chain.from_iterable(folder.samples for folder in self.folders))

    @property
    def pairs(self) -> int:
        """Pairs of a better and a worse image."""
        return len({(sample.image, worse) for sample in self.samples for worse in sample.worse})


def scan_datasets(
    datasets: Sequence[Any],
    trigger_word: str | None,
    reg_weight: float = 1.0,
    scan_cache: ScanCache | None = None,
    forgiven: list[Diagnostic] | None = None,
    read_captions: bool = True,
    also: Sequence[Any] = (),
) -> DatasetScan:
    """Samples of all `datasets` sections, each file read once. Raises DataErrors naming every offender.

    reg_weight: factor on the loss of regularisation images. scan_cache: results of earlier scans, which is updated; it
    makes the scan faster and does not change its result. forgiven: takes the errors instead, and the images that have
    one are left out. read_captions: whether the training does; otherwise missing ones are not reported. also: other
    sections, whose control images are not left over.
    """
    findings = _Findings(scan_cache or ScanCache(), read_captions)
    folders = _find(datasets, findings)
    _note_partners(folders, also, findings)
    _check(folders, trigger_word, forgiven, findings)
    infos = tuple(_build(folder, trigger_word, reg_weight) for folder in folders)
    notes = (*filter(None, (info.note for info in infos)), *findings.notes)
    return DatasetScan(infos, notes, tuple(findings.unused), tuple(findings.unpaired), findings.scan_cache)


class FoundImage(NamedTuple):
    """An image file, and what belongs to it by the names of files. It was not opened."""

    path: str
    repeats: int
    caption: str
    """As its file has it; empty for none."""

    captions: tuple[str, ...]
    """Paths of its caption files: first the one that is read, then others. Empty for none."""

    table: str
    """Path of the table that its caption is from; empty: a file of its own, or none."""

    references: tuple[str, ...]
    """Paths of its control images in slot order."""

    mask: str
    """Path of its mask; empty for none."""

    shares_stem: bool
    """Whether another image has the same name but for the suffix, which is an error of the dataset."""


def find_images(dataset: DatasetConfig) -> tuple[list[FoundImage], list[Diagnostic], list[str]]:
    """The images of a dataset as a scan finds them, errors, and notes. Only caption files are read."""
    findings, images = _Findings(ScanCache(), read_captions=True), list[FoundImage]()
    for folder in _find([dataset], findings):
        listing, table = folder.listing, folder.table_path or ""
        columns = [] if table else _caption_files(folder)
        for index, ((stem, names), caption) in enumerate(zip(listing.images.items(), folder.captions, strict=True)):
            files = [name for column in columns if (name := column[index])]
            files.sort(key=lambda name: not listing.texts.get(name))  # the first that is not empty is read
            references = tuple(image.path for image in folder.controls.get(stem, ()))
            mask = folder.masks[stem].path if stem in folder.masks else ""
            captions, caption = tuple(map(listing.path, files)), caption.replace(LIST, "\n")
            images += [
                FoundImage(
                    listing.path(name), folder.repeats, caption, captions, table, references, mask, len(names) > 1
                )
                for name in names
            ]
    return images, list(dict.fromkeys(findings.mistakes)), findings.notes


@dataclass
class _Findings:
    """What the stages of a scan share: errors, notes and unused files of all datasets, so that they come at once."""

    scan_cache: ScanCache
    read_captions: bool
    mistakes: list[Diagnostic] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unused: list[tuple[str, str]] = field(default_factory=list)
    unpaired: list[tuple[str, str]] = field(default_factory=list)

    def mistake(self, place: str, message: str) -> None:
        self.mistakes.append(Diagnostic((place,), message))

    def listing(self, folder: str, key: str = "") -> DirectoryListing | None:
        """The folder, or None where it cannot be read. key: of its path in the config, for the message."""
        try:
            return self.scan_cache.listing(folder)
        except OSError as error:
            self.mistake(folder, f"{key and f'{key} '}cannot be read as a folder: {error.strerror or error}")
            return None


@dataclass
class _Folder:
    """One folder of images, with what belongs to each image."""

    index: int
    """Index of its entry in `datasets`."""

    dataset: DatasetConfig
    listing: DirectoryListing
    subfolder: str | None
    """Its name within the folder of the dataset; None: it is that folder."""

    table: dict[str, TableRow] | None
    """The rows of one file by `image_name`; None: captions are in files beside the images."""

    table_path: str | None
    whole: DirectoryListing
    """`listing` with the control images and masks that are named by a suffix."""

    captions: list[str] = field(default_factory=list)
    """Caption of each image, in their order; '' for none."""

    controls: dict[str, tuple[ImageFile, ...]] = field(default_factory=dict)
    """By the stem of their image, as the masks."""

    masks: dict[str, ImageFile] = field(default_factory=dict)
    """Mask images; the image itself where its own opacity is the mask."""

    worse: dict[str, tuple[ImageFile, ...]] = field(default_factory=dict)
    """Images that are liked less, by the stem of their better one."""

    slots: list[Slot] = field(default_factory=list)
    """Where control images and masks are looked for."""

    named: set[str] = field(default_factory=set)
    """Stems of the images whose control images the table names."""

    def images(self) -> Iterator[tuple[str, ImageFile]]:
        """Each image with its stem."""
        return ((stem, ImageFile(self.listing, files[0])) for stem, files in self.listing.images.items())

    def partners(self) -> Iterator[tuple[str, ImageFile]]:
        """Stems of images, each with a control image or the mask."""
        yield from ((stem, image) for stem, found in self.controls.items() for image in found)
        yield from self.masks.items()

    def places(self) -> Iterator[tuple[Slot, DirectoryListing]]:
        """Each slot with each folder that is looked through for it."""
        return ((slot, listing) for slot in self.slots for listing in slot.listings)

    def partner_paths(self) -> Iterator[tuple[str, str]]:
        """The keys of folders of control images and masks, and the folders."""
        yield from (("control_path", path) for path in self.dataset.control_path)
        if self.dataset.mask_path and not self.dataset.alpha_mask:
            yield "mask_path", self.dataset.mask_path

    @property
    def repeats(self) -> int:
        """How often each of its images is used per epoch."""
        return self.dataset.num_repeats or repeats_of(self.listing.folder) or 1

    def image_names(self) -> list[str]:
        """The paths of the images from the folder of the dataset."""
        inside = f"{self.subfolder}/" if self.subfolder else ""
        return [image_name(inside + files[0]) for files in self.listing.images.values()]

    def table_names(self) -> list[str]:
        """What the images are called in a table of captions: with their suffix, or as in the table without it."""
        table, names = self.table or {}, self.image_names()
        return [name if name in table or (stem := split_suffix(name)[0]) not in table else stem for name in names]


# ---------------------------------------------------------------- find: names of files


def _find(datasets: Sequence[DatasetConfig], findings: _Findings) -> list[_Folder]:
    """The folders with images, and for each image its caption, control images and mask."""
    folders: list[_Folder] = []
    for index, dataset in enumerate(datasets):
        own = [folder for folder in _image_folders(index, dataset, findings) if _accept(folder, findings)]
        for path, group in groupby(own, key=lambda folder: folder.table_path):
            with_table = [*group]
            # One that is empty could not be read.
            if with_table[0].table and dataset.folder_path:
                _place_table(dataset, str(path), with_table, findings)
        folders += own
    for folder in folders:
        folder.slots = _slots(folder, findings)
    wanted = looked_for((slot, folder.listing.images) for folder in folders for slot in folder.slots)
    for folder in folders:
        _match_files(folder, wanted, findings)
    return folders


def _place_table(dataset: DatasetConfig, path: str, folders: Sequence[_Folder], findings: _Findings) -> None:
    """Brings the rows of a table to the names of the images, and notes images and rows without each other."""
    table = folders[0].table or {}
    images = [*chain.from_iterable(folder.image_names() for folder in folders)]
    rows, begin = placed(table, path, dataset.folder_path, images)
    for folder in folders:
        folder.table = rows
    if begin:
        findings.notes.append(f"{path}: {begin!r} at the beginning of its names is left out")
    names = dict.fromkeys(chain.from_iterable(folder.table_names() for folder in folders))
    unused = [name for name in rows if name not in names]
    if len(unused) == len(rows):
        what = f"none of its {_count(len(rows), 'line')} names an image of {dataset.place}"
        findings.mistake(path, f"{what}. {_unlike(unused, list(names))}")
        return
    if unnamed := [name for name in names if name not in rows]:
        what = f"{len(unnamed)} of {len(names)} images have no line in {path}"
        findings.notes.append(f"{dataset.place}: {what}: {shorten(unnamed)}")
    if unused:
        what = f"{len(unused)} of {len(rows)} lines name no image of {dataset.place}"
        findings.notes.append(f"{path}: {what}: {shorten(unused)}")


def _unlike(written: Sequence[str], images: Sequence[str]) -> str:
    """How the names of a table differ from those of the images, by the first two that are nearly the same."""

    def key(name: str) -> str:
        return split_suffix(os.path.basename(name.replace("\\", "/")))[0].casefold()

    of_images = {key(name): name for name in reversed(images)}
    near = next((name for name in written if key(name) in of_images), written[0])
    image = of_images.get(key(near), next(iter(images), ""))
    is_letters = key(near) in of_images and os.path.dirname(near) == os.path.dirname(image)
    remedy = "write suffix and letters as that file has them" if is_letters else "write paths from that folder"
    return f"It has {near!r}, the folder {image!r}: {remedy}"


def _image_folders(index: int, dataset: DatasetConfig, findings: _Findings) -> Iterator[_Folder]:
    """The image folders of one entry: its own, or its subfolders."""
    path, table = dataset.folder_path, None
    if dataset.captions_file is not None:
        # Images of a folder are found by what follows the folders of another machine, where that is sure.
        if lost := lost_folders(dataset.captions_file, dataset.path_map, images=not path):
            for folder in lost:
                what = f"names files in {folder}, which is not on this machine"
                remedy = f"--map {shlex.quote(f'{folder}=NEW')}"
                findings.mistake(dataset.captions_file, f"{what}. Where it lies elsewhere: {remedy}")
            return
        before = len(findings.mistakes)
        table = read_captions_file(dataset.captions_file, findings.mistakes, dataset.path_map)
        if not table and len(findings.mistakes) == before:
            votes = undecided(dataset.captions_file)
            what = "has votes for neither of two images alone" if votes else "has no line"
            remedy = "Vote on more" if votes else "Write one for each image"
            findings.mistake(dataset.captions_file, f"{what}. {remedy}, or take 'captions_file' out")
            return
        if not path:
            yield from _folders_of_table(index, dataset, table, findings)
            return
    if (top := findings.listing(path)) is None:
        return
    if top.images:
        # Loose images beside subfolders with repeats would be all that is used.
        named = [name for name in _subfolders(top, dataset) if _REPEATS.match(name)]
        filled = [name for name in named if (listing := findings.listing(join(path, name))) and listing.images]
        if filled and not _matched_name(path, _REPEATS):
            loose = shorten(chain.from_iterable(top.images.values()))
            what = f"holds images itself ({loose}), so those in {shorten(filled)} would not be used"
            findings.mistake(path, f"{what}. Move the loose images away, or give each subfolder as a dataset")
        images = _without_partners(top, dataset)
        if not images.images:
            example = next(chain.from_iterable(top.images.values()))
            what = f"no name of an image in it ends with image_suffix {dataset.image_suffix!r}"
            findings.mistake(path, f"{what}. It has {example!r}: write the suffix with its letters")
        yield _Folder(index, dataset, images, None, table, dataset.captions_file, top)
        return
    listings = [(name, findings.listing(join(path, name))) for name in _subfolders(top, dataset)]
    empty = [name for name, listing in listings if listing and not listing.images]
    for name, listing in listings:
        if listing and listing.images:
            images = _without_partners(listing, dataset)
            yield _Folder(index, dataset, images, name, table, dataset.captions_file, listing)
    _note_pair_folders(dataset, {name: listing.images for name, listing in listings if listing}, findings)
    below = _images_below([join(path, name) for name in empty], dataset, findings)
    if not any(listing and listing.images for _, listing in listings):
        remedy = f"Supported: {', '.join(sorted(IMAGE_SUFFIXES))}"
        if below:
            above = {folder.rpartition("/")[0] if _matched_name(folder, _REPEATS) else folder for folder in below}
            remedy = f"{shorten(map(repr, below))} {'does' if len(below) == 1 else 'do'}: give {shorten(sorted(above))}"
        findings.mistake(path, f"holds no images (seen: {top.describe()}). {remedy}")
    elif below:
        what = f"{shorten(below)} {'holds' if len(below) == 1 else 'hold'} images that are not used"
        remedy = "Only direct subfolders are looked into: give it as a dataset"
        findings.notes.append(f"warning: {path}: {what}. {remedy}")
    elif empty:
        findings.notes.append(f"{path}: subfolders without images ignored: {shorten(empty)}")


def _note_pair_folders(dataset: DatasetConfig, inside: Mapping[str, Collection[str]], findings: _Findings) -> None:
    """Notes two subfolders that look like the images and control images of pairs, which both are trained."""
    if not dataset.control_path and (pair := pair_folders(inside)):
        images, controls = (join(dataset.folder_path, name) for name in pair)
        looks = f"its subfolders {pair[0]!r} and {pair[1]!r} look like pairs, and each image is trained by itself"
        looks = f"{looks}. For pairs give 'folder_path: {images}' and 'control_path: {controls}'"
        findings.notes.append(f"warning: {dataset.folder_path}: {looks}")
        findings.unpaired.append((dataset.folder_path, looks))


def _images_below(folders: Sequence[str], dataset: DatasetConfig, findings: _Findings) -> list[str]:
    """The first folders with images on each way down from these, which have none."""
    found, waiting, seen = list[str](), [*folders], _partner_places(dataset)
    for _ in range(_LOOKED_INTO):
        if not waiting:
            break
        folder = waiting.pop(0)
        if (place := real_path(folder)) in seen:
            continue
        seen.add(place)
        with suppress(OSError):  # nothing of it would be used
            listing = findings.scan_cache.listing(folder)
            if listing.images:
                found.append(folder)
            else:
                waiting += [join(folder, name) for name in listing.subfolders]
    return found


def _folders_of_table(
    index: int, dataset: DatasetConfig, table: dict[str, TableRow], findings: _Findings
) -> Iterator[_Folder]:
    """The folders of the images that a table names, with these images alone."""
    path = str(dataset.captions_file)
    place = os.path.dirname(path) or "."
    table = {with_slashes(name, place): row for name, row in table.items()}
    inside: dict[str, set[str]] = {}
    for name in table:
        inside.setdefault(os.path.dirname(name), set()).add(name)
    for subfolder, names in inside.items():
        start = join(place, subfolder) if subfolder else place
        if subfolder and not os.path.isdir(os.path.expanduser(start)) and os.path.isdir(subfolder):
            start = subfolder  # from the working directory, as musubi-tuner writes them
        if listing := findings.listing(start):
            folder = _Folder(index, dataset, listing, subfolder or None, table, path, listing)
            called = dict(zip(listing.images, folder.table_names(), strict=True))
            images = {stem: files for stem, files in listing.images.items() if called[stem] in names}
            folder.listing = replace(listing, images=images)
            for name in sorted(names.difference(called.values())):
                line = line_naming(path, name, dataset.path_map)
                findings.mistake(folder.listing.path(os.path.basename(name)), f"is named in {line} and is not an image")
            yield folder


_REGULARISATION = re.compile(
    r"(?:.*[_\W])?(?:regs?|regulari[sz]ation(?:s|_?images)?)(?:[_\W].*)?|class(?:es|_?images)?", re.IGNORECASE
)


def named_as_regularisation(folder: str) -> bool:
    """Whether the name of a folder says that its images are regularisation images, as kohya's users have it: `1_reg`,
    `reg_dog`, `regularization`, `class`."""
    name = os.path.basename(os.path.abspath(folder))
    return bool(_REGULARISATION.fullmatch(_REPEATS.sub("", name, count=1) if _REPEATS.match(name) else name))


def repeats_of(folder: str) -> int:
    """How often the name of a folder says that its images are used per epoch; 0 where it does not say it."""
    return int(_matched_name(folder, _REPEATS) or 0)


def _matched_name(folder: str, pattern: re.Pattern[str]) -> str:
    # abspath, not resolve: "." gets its name, a symlink keeps the one the user gave it.
    match = pattern.match(os.path.basename(os.path.abspath(folder)))
    return match[1] if match else ""


def _without_partners(listing: DirectoryListing, dataset: DatasetConfig) -> DirectoryListing:
    """The folder without the control images and masks that the dataset tells by a suffix of their image's name, and
    without what lacks the suffix of its images."""
    suffixes = tuple(filter(None, (*dataset.control_suffix, dataset.mask_suffix)))
    if not (suffixes or dataset.image_suffix):
        return listing
    stems = [stem for stem in listing.images if stem.endswith(dataset.image_suffix)]
    roots = [stem.removesuffix(dataset.image_suffix) for stem in stems]
    partners = {root + suffix for root in roots for suffix in suffixes}
    controls = [root + suffix for root in roots for suffix in dataset.control_suffix]
    partners.update(chain.from_iterable(listing.numbered.get(stem, ()) for stem in controls))
    return replace(listing, images={stem: listing.images[stem] for stem in stems if stem not in partners})


def _partner_places(dataset: DatasetConfig) -> set[str]:
    """The real paths of the folders of control images and masks."""
    return {real_path(folder) for folder in (*dataset.control_path, dataset.mask_path) if folder}


def _subfolders(listing: DirectoryListing, dataset: DatasetConfig) -> list[str]:
    """Subfolders except those with the dataset's control images and masks."""
    partners = _partner_places(dataset)
    return [name for name in listing.subfolders if real_path(join(listing.folder, name)) not in partners]


def _accept(folder: _Folder, findings: _Findings) -> bool:
    """Notes what a folder holds beside images and captions; False where its name rules it out.

    Where no image has a caption file, the captions of the only table in the folder that names images are taken.
    """
    dataset, listing = folder.dataset, folder.listing
    if not dataset.folder_path:  # what its table does not name is not meant
        return True
    repeats = _matched_name(listing.folder, _REPEATS)
    if repeats and not int(repeats) and not dataset.num_repeats:
        findings.mistake(listing.folder, "its name asks for 0 repeats. Give 1 or more, or take it out")
        return False
    captions = _caption_files(folder)
    if folder.table is None and findings.read_captions and not any(map(any, captions)):
        tables = {
            name: table for name in listing.files.values() if (table := _table_of(listing, name, dataset.path_map))
        }
        if len(tables) == 1:
            ((name, table),) = tables.items()
            inside = f"{folder.subfolder}/" if folder.subfolder else ""
            folder.table_path = listing.path(name)
            folder.table = {inside + name: row for name, row in table.items()}
            captions = _caption_files(folder)
            findings.notes.append(f"{listing.folder}: no caption files: captions are read from {folder.table_path}")
    caption_ext = dataset.caption_ext if folder.table is None else ()
    used, ignored = set(chain.from_iterable(captions)), dict[tuple[str, str], list[str]]()
    for name, written in listing.files.items():
        if written not in used:
            why = _why_ignored(name, listing, caption_ext)
            if why == _NO_IMAGE and caption_ext and not any(used) and _is_table_of_others(listing, written):
                why = _TABLE_OF_OTHERS
            ignored.setdefault(why, []).append(written)
    for (reason, remedy), names in ignored.items():
        if remedy:
            _not_used(listing, names, reason, remedy, findings, findings.unused)
        else:
            findings.notes.append(f"{listing.folder}: ignored, {reason}: {shorten(names)}")
    if not (dataset.image_suffix or dataset.control_suffix) and (pairs := pair_names(listing.images)):
        optional = ", control_optional: true" if pairs.optional else ""
        controls = ", ".join(map(in_yaml, pairs.controls))
        given = f"image_suffix: {in_yaml(pairs.image)}, control_suffix: [{controls}]{optional}"
        looks = f"its images look like pairs, and each is trained by itself. For pairs give '{given}'"
        findings.notes.append(f"warning: {listing.folder}: {looks}")
        findings.unpaired.append((listing.folder, looks))
    if subfolders := _subfolders(listing, dataset):
        findings.notes.append(f"{listing.folder}: holds images itself; subfolders ignored: {shorten(subfolders)}")
    return True


def _caption_files(folder: _Folder) -> list[list[str]]:
    """The files of the folder that are read for captions: for each suffix those of the images, or the one table."""
    if folder.table_path is None:
        return caption_files(folder.listing, folder.dataset.caption_ext, folder.dataset.image_suffix)
    place, name = os.path.split(folder.table_path)
    return [[name]] if real_path(place or ".") == real_path(folder.listing.folder) else []


def _why_ignored(name: str, listing: DirectoryListing, caption_ext: Sequence[str]) -> tuple[str, str]:
    """The reason, and the remedy; that is empty where nobody expects the file to be used.

    caption_ext: the suffixes of captions; none where they come from one file.
    """
    stem, suffix = split_suffix(name)
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
    return _NO_IMAGE


_NO_IMAGE = "not an image", ""
_TABLE_OF_OTHERS = "table of captions that names no image of the folder", "Write the names as the images have them"


def _is_table_of_others(listing: DirectoryListing, name: str) -> bool:
    """Whether a file is a table of captions, by lines that name images."""
    if split_suffix(name)[1] not in TABLES or name in listing.no_files:
        return False
    mistakes = list[Diagnostic]()
    table = read_captions_file(listing.path(name), mistakes)
    return not mistakes and any(split_suffix(each)[1] in IMAGE_SUFFIXES for each in table)


def _table_of(listing: DirectoryListing, name: str, moved: Mapping[str, str] = NOTHING_MOVED) -> dict[str, TableRow]:
    """The rows of a table that names images of its folder; else empty."""
    stem, suffix = split_suffix(name)
    if suffix not in TABLES or stem in listing.images or name in listing.no_files:
        return {}
    table = read_captions_file(listing.path(name), [], moved)
    names = [image_name(files[0]) for files in listing.images.values()]
    table, _ = placed(table, listing.path(name), listing.prefix, names)
    return table if any(name in table or split_suffix(name)[0] in table for name in names) else {}


def _match_files(folder: _Folder, wanted: LookedFor, findings: _Findings) -> None:
    """Finds caption, control images and mask of every image. wanted: of `looked_for`, of all folders.

    With `control_optional` a missing slot is skipped and later ones move up: slot 2 alone becomes the only control
    image.
    """
    if any(row.worse for row in (folder.table or {}).values()):  # what it does not name was not chosen
        named = zip(folder.listing.images.items(), folder.table_names(), strict=True)
        images = dict(image for image, name in named if name in (folder.table or {}))
        folder.listing = replace(folder.listing, images=images)
    listing, dataset = folder.listing, folder.dataset
    for stem, files in listing.images.items():
        if len(files) > 1:
            reason = f"images share the stem {stem!r}: {shorten(files)}. Rename one"
            findings.mistake(join(listing.folder, files[0]), reason)
    if folder.table is None:
        folder.captions = find_captions(listing, _caption_files(folder), findings.mistakes)
        if dataset.caption_from_name:
            names = (stem.replace("_", " ") for stem in listing.images)
            folder.captions = [caption or name for caption, name in zip(folder.captions, names, strict=True)]
    else:
        rows = [folder.table.get(name, TableRow("")) for name in folder.table_names()]
        folder.captions = [row.caption for row in rows]
        for stem, row in zip(listing.images, rows, strict=True):
            if row.references:
                folder.controls[stem] = tuple(_named_files(folder, row.references, "as a control image", findings))
            if row.worse:
                folder.worse[stem] = tuple(_named_files(folder, row.worse, "as a worse image", findings))
    for (_, image), text in zip(folder.images(), folder.captions, strict=True):
        if LIST in text and dataset.captions == "one" and findings.read_captions:
            reason = f"has a list of {text.count(LIST) + 1} captions. Give 'captions: lines', or one of them as text"
            findings.mistake(image.path, reason)
    folder.named = set(folder.controls)
    for slot in folder.slots:
        for stem, image in folder.images():
            if slot.key == "control" and stem in folder.named:
                continue
            found = partners_of(stem, image, slot, wanted, findings.mistakes)
            if slot.key == "control":
                folder.controls[stem] = (*folder.controls.get(stem, ()), *found)
            elif found:
                folder.masks[stem] = found[0]
    if dataset.alpha_mask:
        folder.masks = dict(folder.images())


def _named_files(folder: _Folder, paths: Iterable[str], named: str, findings: _Findings) -> Iterator[ImageFile]:
    """The images that a row of the table names: in the folder of the images, else from that of the table."""
    for path in paths:
        folders = (folder.dataset.folder_path, os.path.dirname(folder.table_path or ""), ".")
        written = dict.fromkeys((path, path.replace("\\", "/")))
        places = [path] if os.path.isabs(path) else [join(place or ".", each) for place in folders for each in written]
        found = next((place for place in places if os.path.isfile(os.path.expanduser(place))), places[0])
        listing = findings.listing(os.path.dirname(found))
        if listing and os.path.basename(found) in listing.versions:
            yield ImageFile(listing, os.path.basename(found))
        elif listing:
            place = line_naming(str(folder.table_path), path, folder.dataset.path_map)
            findings.mistake(found, f"is named in {place} {named} and is not there")


def _slots(folder: _Folder, findings: _Findings) -> list[Slot]:
    """Where the control images and the masks of a folder's images are looked for, in slot order."""
    dataset, whole = folder.dataset, [folder.whole]

    def listings(path: str, key: str) -> list[DirectoryListing]:
        """The folder of the images' subfolder first, then `path`."""
        places = [path]
        if folder.subfolder and os.path.isdir(os.path.expanduser(inside := join(path, folder.subfolder))):
            places.insert(0, inside)
        return [listing for place in places if (listing := findings.listing(place, key))]

    optional = dataset.control_optional
    slots = [Slot("control", "", listings(path, "control_path"), optional) for path in dataset.control_path]
    image_end = dataset.image_suffix
    slots += [Slot("control", suffix, whole, optional, image_end) for suffix in dataset.control_suffix]
    if (dataset.mask_path or dataset.mask_suffix) and not dataset.alpha_mask:
        masks = listings(dataset.mask_path, "mask_path") if dataset.mask_path else whole
        slots.append(
            Slot("mask", dataset.mask_suffix, masks, dataset.mask_optional, image_end if dataset.mask_suffix else "")
        )
    return slots


def _note_partners(folders: Sequence[_Folder], also: Sequence[DatasetConfig], findings: _Findings) -> None:
    """Notes control images and masks that belong to no image, and those that several images share by their name.

    also: further datasets, whose images use such files.
    """
    others = _find(also, _Findings(findings.scan_cache, read_captions=False)) if also else []
    files: dict[str, set[str]] = {}
    for _, (listing, name) in chain.from_iterable(folder.partners() for folder in (*folders, *others)):
        files.setdefault(listing.prefix, set()).add(name)
    used: dict[str, set[str]] = {}
    for prefix, names in files.items():  # several of one folder, where its path is written differently
        used.setdefault(real_path(prefix), set()).update(names)
    known = {real_path(folder.listing.prefix) for folder in (*folders, *others)}
    for slot, listing in chain.from_iterable(folder.places() for folder in folders):
        if (place := real_path(listing.prefix)) in known:
            continue
        known.add(place)
        if left := unpaired(listing, used.get(place, ())):
            several = ", with _0, _1 and so on for several" if slot.key == "control" else ""
            reason = f"{slot.what} without an image"
            _not_used(listing, left, reason, f"Give it the name of its image{several}", findings, findings.unpaired)
        if texts := captions_beside(listing):
            remedy = "Put it beside the image, with its name"
            _not_used(listing, texts, f"caption beside a {slot.what}", remedy, findings, findings.unused)
    for key, path in dict.fromkeys(chain.from_iterable(folder.partner_paths() for folder in folders)):
        if (top := findings.listing(path, key)) is not None:
            places = ((name, join(path, name)) for name in top.subfolders)
            inside = [(name, findings.listing(place)) for name, place in places if real_path(place) not in known]
            if filled := [name for name, listing in inside if listing and listing.images]:
                findings.notes.append(f"{path}: subfolders without a folder of images ignored: {shorten(filled)}")
    _note_shared(folders, findings)


def _note_shared(folders: Sequence[_Folder], findings: _Findings) -> None:
    """Notes control images and masks that several images of one dataset have by their name, and images that are named
    like such a file."""
    for folder in folders:
        ends = tuple(slot.end for slot in folder.slots if slot.end)
        if lone := [files[0] for stem, files in folder.listing.images.items() if ends and stem.endswith(ends)]:
            what = f"named like control images or masks, and trained as images: {shorten(lone)}"
            remedy = "Remove them, or add the images without the ending"
            findings.notes.append(f"warning: {folder.listing.folder}: {_count(len(lone), 'file')} {what}. {remedy}")
        if folder.dataset.image_suffix:
            known = {
                *chain.from_iterable(folder.listing.images.values()),
                *(each.name for _, each in folder.partners()),
            }
            if others := unpaired(folder.whole, known):
                reason = f"without image_suffix {folder.dataset.image_suffix!r}, and control image of no image"
                remedy = "Give it one of the suffixes, or remove it"
                _not_used(folder.whole, others, reason, remedy, findings, findings.unpaired)
    for index in dict.fromkeys(folder.index for folder in folders):
        own = [folder for folder in folders if folder.index == index and folder.slots]
        uses = (
            (folder.listing.path(folder.listing.images[stem][0]), partner.path)
            for folder in own
            for stem, partner in folder.partners()
            if stem not in folder.named
        )
        if found := shared(uses):
            partner, images = next(iter(found.items()))
            more = f" ({_count(len(found) - 1, 'more file')} likewise)" if len(found) > 1 else ""
            what = f"is the one of {len(images)} images: {shorten(images)}{more}"
            remedy = "Where each image has its own, put them into subfolders named as those of the images"
            findings.notes.append(f"warning: {partner}: {what}. {remedy}")


def _not_used(
    listing: DirectoryListing,
    names: Sequence[str],
    reason: str,
    remedy: str,
    findings: _Findings,
    kept: list[tuple[str, str]],
) -> None:
    """Notes files that are not used though they seem meant to be, and keeps them among others."""
    note = f"{listing.folder}: {_count(len(names), 'file')} not used, {reason}: {shorten(names)}. {remedy}"
    findings.notes.append(f"warning: {note}")
    kept += [(listing.path(name), f"{reason}. {remedy}") for name in names]


# ---------------------------------------------------------------- check: the images


def _check(
    folders: Sequence[_Folder], trigger_word: str | None, forgiven: list[Diagnostic] | None, findings: _Findings
) -> None:
    """Reads the facts of every image that is used, then warns of what is allowed but rarely meant.

    Raises DataErrors for all errors so far; with `forgiven` it takes them, and the images that have one are left out.
    """
    _skip_unreadable(folders, _read_facts(folders, findings), findings)
    pairs = [pair for folder in folders for pair in _pairs(folder)]
    findings.mistakes += pair_mistakes(pairs)
    findings.notes += contradictions(pairs)
    for path in dict.fromkeys(folder.table_path for folder in folders if folder.worse and folder.table_path):
        if count := undecided(path):
            findings.notes.append(f"{path}: {_count(count, 'vote')} for neither of two images: not used")
    if mistakes := list(dict.fromkeys(findings.mistakes)):
        if forgiven is None:
            raise DataErrors(mistakes)
        forgiven += mistakes
        for folder in folders:
            _leave_out(folder, {mistake.place for mistake in mistakes})
    for folder in folders:
        findings.notes += _check_masks(folder)
        findings.notes += _warnings(folder, trigger_word, findings.read_captions)
    if findings.read_captions:
        findings.notes += _several_lines(folders)


def _several_lines(folders: Sequence[_Folder]) -> Iterator[str]:
    """Notes captions with line breaks: other programs take one of the lines."""
    whole = [folder for folder in folders if folder.dataset.captions == "one"]
    captions = [
        (name, text) for folder in whole for name, text in zip(folder.image_names(), folder.captions, strict=True)
    ]
    if several := [name for name, text in captions if "\n" in text]:
        are = "has" if len(several) == 1 else "have"
        what = f"{len(several):,} of {_count(len(captions), 'caption')} {are} several lines"
        how = "trained together, as one caption with line breaks ('captions: lines' draws one at each use)"
        yield f"{what}, which are {how}: {shorten(several)}"


def _texts(text: str, dataset: DatasetConfig) -> list[str]:
    """The captions of an image by the text of its file or row: one, empty for none, or several."""
    return (captions_of(text) or [""]) if dataset.captions == "lines" else [text]


def _read_facts(folders: Sequence[_Folder], findings: _Findings) -> dict[str, str]:
    """Reads the images, each once: few of them whole, of many the header and the end. Path -> error of those that
    cannot be read."""
    wanted: dict[DirectoryListing, dict[str, None]] = {}
    for folder in folders:
        wanted.setdefault(folder.listing, {}).update(dict.fromkeys(chain(*folder.listing.images.values())))
        for listing, name in chain(*folder.controls.values(), *folder.worse.values(), folder.masks.values()):
            wanted.setdefault(listing, {})[name] = None
    images = [ImageFile(listing, name) for listing, names in wanted.items() for name in names]
    inspect, at_once = inspect_image, 16
    unread = [image for image in images if not (image.facts and image.facts.verified)]
    if len(unread) > READ_WHOLE:
        inspect, at_once = inspect_header, 500
        unread = [image for image in images if not image.facts]

    def look(image: ImageFile) -> ImageInfo | str:
        """Its facts, or the error."""
        try:
            return image.listing.no_files.get(image.name) or inspect(image.path)
        except ImageError as error:
            return error.reason

    unreadable: dict[str, str] = {}
    for image, found in zip(unread, thread_map(look, unread, at_once), strict=True):
        if isinstance(found, str):
            unreadable[image.path] = found
        else:
            image.listing.facts[image.name] = found
    for image in chain.from_iterable(chain.from_iterable(folder.controls.values() for folder in folders)):
        if image.facts and (reason := reference_error(image.facts.size)):
            findings.mistake(image.path, reason)
    for listing, names in wanted.items():
        read = (name for name in sorted(names) if name in listing.facts)
        noted = ((name, note) for name in read for note in listing.facts[name].notes if note != CLEAR)
        findings.notes += [f"{listing.path(name)}: {note}" for name, note in noted]
    return unreadable


def _skip_unreadable(folders: Sequence[_Folder], unreadable: Mapping[str, str], findings: _Findings) -> None:
    """Leaves out images that cannot be read, or whose control image or mask cannot, of datasets with
    `skip_unreadable`; those of others are errors."""
    wrong: dict[str, None] = {}
    for folder in folders:
        files = {*map(folder.listing.path, chain(*folder.listing.images.values()))}
        files |= {image.path for _, image in folder.partners()}
        files |= {image.path for image in chain.from_iterable(folder.worse.values())}
        found = [path for path in unreadable if path in files]
        if not folder.dataset.skip_unreadable:
            wrong |= dict.fromkeys(found)
            continue
        before = len(folder.listing.images)
        _leave_out(folder, found)
        if not folder.listing.images:
            wrong |= dict.fromkeys(found)
        elif found:
            what = f"{before - len(folder.listing.images):,} of {_count(before, 'image')} left out (skip_unreadable)"
            reasons = "; ".join(f"{os.path.basename(path)} {unreadable[path]}" for path in found[:3])
            findings.notes.append(f"warning: {folder.listing.folder}: {what}: {reasons}")
    for path in wrong:
        findings.mistake(path, unreadable[path])


def _leave_out(folder: _Folder, places: Collection[str]) -> None:
    """Forgets the images that have an error: in their own file, or in one that belongs to them."""

    def is_good(stem: str, files: tuple[str, ...]) -> bool:
        masks = (folder.masks[stem],) if stem in folder.masks else ()
        partners = (*folder.controls.get(stem, ()), *masks, *folder.worse.get(stem, ()))
        used = (folder.listing.path(files[0]), *(image.path for image in partners))
        return len(files) == 1 and not any(path in places for path in used)

    images = folder.listing.images
    good = {stem: files for stem, files in images.items() if is_good(stem, files)}
    folder.captions = [text for stem, text in zip(images, folder.captions, strict=True) if stem in good]
    folder.masks = {stem: mask for stem, mask in folder.masks.items() if stem in good}
    folder.listing = replace(folder.listing, images=good)


def _pairs(folder: _Folder) -> Iterator[Pair]:
    for (stem, image), caption in zip(folder.images(), folder.captions, strict=True):
        yield from (Pair(image, worse, caption) for worse in folder.worse.get(stem, ()))


def _check_masks(folder: _Folder) -> Iterator[str]:
    """Notes images that have no transparency to be their mask, which then have none, and masks of another shape than
    their image."""
    opaque, stretched = [], []
    for stem, mask in list(folder.masks.items()):
        (name,) = folder.listing.images[stem]
        image, facts = folder.listing.facts[name].size, mask.listing.facts[mask.name]
        if folder.dataset.alpha_mask and not facts.alpha:
            del folder.masks[stem]
            opaque.append(name)
        elif abs(facts.size.width * image.height / (facts.size.height * image.width) - 1) > 0.02:
            stretched.append(name)  # 2 %: more than rounding to pixels explains
    place = folder.listing.folder
    if opaque:
        yield f"{place}: alpha_mask: no transparency, so the whole image counts: {shorten(opaque)}"
    if stretched:
        yield f"{place}: the mask has another shape and is stretched over: {shorten(stretched)}"


def _warnings(folder: _Folder, trigger_word: str | None, read_captions: bool) -> Iterator[str]:
    """Warnings of what is allowed but rarely meant."""
    dataset, listing = folder.dataset, folder.listing
    begin = f"warning: {listing.folder}:"
    if (count := _matched_name(listing.folder, _NEARLY_REPEATS)) and not dataset.num_repeats:
        remedy = f"For {count} repeats begin its name with '{count}_', or give 'num_repeats: {count}'"
        yield f"{begin} each image is used once per epoch. {remedy}"
    if not dataset.is_reg and named_as_regularisation(listing.folder):
        yield f"{begin} {REGULARISATION}"
    if read_captions:
        yield from (f"{begin} {what}" for what in _check_captions(folder, dataset.trigger_word or trigger_word or ""))
    facts = {name: listing.facts[name] for (name,) in listing.images.values()}
    clear = [name for name, info in facts.items() if CLEAR in info.notes]
    if clear and not dataset.alpha_mask:
        what = f"{len(clear):,} of {_count(len(facts), 'image')} {'is' if len(clear) == 1 else 'are'}"
        outcome = f"fully transparent, so that nothing of it is seen: {shorten(clear)}"
        yield f"{begin} {what} {outcome}. Export them once more, or remove them"
    resolution = min(dataset.resolution, key=area_of)
    least = area_of(resolution) / 4
    if small := [(name, info.size) for name, info in facts.items() if info.size.width * info.size.height < least]:
        outcome = "not enlarged" if isinstance(resolution, int) else "enlarged to it"
        what = f"smaller than half of 'resolution: {resolution}', and {outcome}"
        names = shorten(f"{name} ({size.width}x{size.height})" for name, size in small)
        yield f"{begin} {len(small)} of {len(facts)} images are {what}: {names}"


def _check_captions(folder: _Folder, trigger: str) -> Iterator[str]:
    """What is rarely meant in the captions of a folder: count, names, remedy."""
    dataset, captions = folder.dataset, folder.captions
    used = [add_prefix(caption or dataset.default_caption or "", dataset.caption_prefix) for caption in captions]
    names = [files[0] for files in folder.listing.images.values()]
    missing = [name for name, text in zip(names, used, strict=True) if not text]
    if missing and not dataset.is_reg and (not trigger or len(missing) < len(used)):
        many = len(missing) > 1
        outcome = f"with {trigger!r} alone" if trigger else "with an empty prompt, as there is no trigger_word"
        share = f"{len(missing):,} of {_count(len(used), 'image')} {'have' if many else 'has'}"
        first = split_suffix(missing[0])[0] + dataset.caption_ext[0]
        is_there = folder.listing.files.get(first)
        what = f"{first} is empty: write the caption into it" if is_there else f"Write {first}"
        remedy = f"{what}{' etc.' * many}, or give 'default_caption'"
        yield f"{share} no caption ({shorten(missing)}) and {'train' if many else 'trains'} {outcome}. {remedy}"
    together = "\n".join(used)
    literal = [each for each in PLACEHOLDERS if each in together and not trigger]
    for placeholder in (*literal, *nearly_placeholders(together)):
        held = [name for name, text in zip(names, used, strict=True) if placeholder in text]
        remedy = "Give the job a 'trigger_word'" if placeholder in PLACEHOLDERS else f"Write '{PLACEHOLDERS[0]}'"
        what = f"{_count(len(held), 'caption')} with '{placeholder}', which nothing replaces: {shorten(held)}"
        yield f"{what}. {remedy}"
    if not dataset.is_reg:
        yield from _odd_captions(dict(zip(names, used, strict=True)), trigger)
    if not trigger and not dataset.is_reg and not dataset.references[1] and not dataset.caption_prefix:
        texts = [text for caption in captions for text in _texts(caption, dataset)]
        word, count = usual_word([text for text in texts if text])
        if word and word not in PLACEHOLDERS and word not in nearly_placeholders(word):
            what = f"{count} of {len(texts)} captions begin with {word!r}, and there is no trigger_word"
            yield f"{what}. If it is yours, give 'trigger_word: {word}'"


def _odd_captions(captions: Mapping[str, str], trigger: str) -> Iterator[str]:
    """Captions that are probably written otherwise than they are meant. captions: of each image, with its prefix."""
    if quoted := [
        name for name, text in captions.items() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    ]:
        yield f"{_count(len(quoted), 'caption')} in quotation marks, which are trained as part of it: {shorten(quoted)}"
    folded = trigger.lower()
    other = [name for name, text in captions.items() if folded in text.lower() and trigger not in text]
    if trigger and other:
        what = f"{_count(len(other), 'caption')} with {trigger!r} in other letters, so that it is put in front as well"
        yield f"{what}: {shorten(other)}"


# ---------------------------------------------------------------- build: the samples


def _build(folder: _Folder, trigger_word: str | None, reg_weight: float) -> FolderInfo:
    """The samples of a folder."""
    dataset, listing = folder.dataset, folder.listing
    named = _matched_name(listing.folder, _REPEATS)
    note = ""
    if named and int(named) != folder.repeats:
        unused = f"the {int(named)} in the folder's name is not used"
        note = f"{listing.folder}: num_repeats: {dataset.num_repeats} is given; {unused}"
    rules = caption_rules(dataset, trigger_word)
    add_trigger = not dataset.is_reg  # they show what the trigger word is not to mean
    flips = [Flip(x, y) for y in sorted({False, dataset.flip_y}) for x in sorted({False, dataset.flip_x})]
    weight = dataset.loss_multiplier * (reg_weight if dataset.is_reg else 1.0)
    names = [name for (name,) in listing.images.values()]
    controls = {stem: tuple(image.path for image in found) for stem, found in folder.controls.items()}
    masks = {
        stem: Mask(mask.path, dataset.alpha_mask, dataset.mask_min_value, dataset.invert_mask)
        for stem, mask in folder.masks.items()
    }
    captions = [
        tuple(trained_caption(each, dataset, rules, add_trigger) for each in _texts(text, dataset))
        for text in folder.captions
    ]
    columns = (
        [listing.prefix + name for name in names],
        [texts[0] for texts in captions],
        repeat(folder.repeats),
        [listing.facts[name].size for name in names],
        repeat(listing.folder),
        [controls.get(stem, ()) for stem in listing.images],
        repeat(rules),
        [masks.get(stem) for stem in listing.images],
        repeat(weight),
        repeat(dataset.canvas),
        repeat(NO_FLIP),
        repeat(folder.index),
        [texts if len(texts) > 1 else () for texts in captions],
        [tuple(image.path for image in folder.worse.get(stem, ())) for stem in listing.images],
    )
    samples = tuple(map(Sample._make, zip(*columns, strict=False)))  # one by one they take half as long again
    if flips != [NO_FLIP]:
        samples = tuple(sample._replace(flip=flip) for sample in samples for flip in flips)
    missing = folder.captions.count("")
    seen = [*(folder.controls[stem] for stem in listing.images if stem in folder.controls)]
    files = {image.path: image.facts for images in seen for image in images}
    if not dataset.alpha_mask:
        files |= {listing.path(name): listing.facts[name] for name in names}
    with_alpha = sum(facts is not None and facts.alpha for facts in files.values())
    return FolderInfo(folder.index, listing.folder, folder.repeats, samples, missing, note, dataset.is_reg, with_alpha)


# ---------------------------------------------------------------- words of messages


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def shorten(names: Iterable[str]) -> str:
    """A list that stays readable for thousands of files."""
    names = list(names)
    more = f" and {len(names) - _LISTED_NAMES} more" if len(names) > _LISTED_NAMES else ""
    return ", ".join(names[:_LISTED_NAMES]) + more
