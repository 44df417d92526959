"""From folders of images to samples: repeats from folder names; captions, control images and masks matched by name.

A dataset is one folder of images, or a folder whose direct subfolders hold them. A leading `<int>_` in the name of the
folder that holds the images is how often each is used per epoch.

A scan has three stages: `_find` matches names of files, `folder_check` reads the images, `_build` makes the samples.
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
from itertools import chain, repeat
from typing import Any, NamedTuple

from toolkit.config.dataset import DatasetConfig
from toolkit.data.captions import (
    LIST,
    caption_files,
    caption_of_name,
    caption_rules,
    find_captions,
    trained_caption,
)
from toolkit.data.columns import in_yaml as column_in_yaml
from toolkit.data.directory import DirectoryListing, ImageFile, ScanCache, join, real_path, split_suffix
from toolkit.data.folder_check import check_images
from toolkit.data.found import (
    FoundFolder,
    ScanFindings,
    count_of,
    held_out_folders,
    matched_name,
    shorten,
    split_of,
    texts_of,
)
from toolkit.data.images import (
    IMAGE_SUFFIXES,
)
from toolkit.data.masks import MaskLook
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
from toolkit.data.repeats import REPEATS
from toolkit.data.tables import (
    NO_COLUMNS,
    NO_JSON,
    TABLES,
    Table,
    TableRow,
    image_name,
    line_naming,
    lost_folders,
    placed,
    read_table,
    with_slashes,
)
from toolkit.data.types import NO_FLIP, Flip, Sample
from toolkit.errors import Diagnostic
from toolkit.files.archives import archive_in
from toolkit.files.parquet import MISSING, has_pictures, is_missing, is_parquet
from toolkit.files.parquet import SUFFIX as PARQUET
from toolkit.files.parquet import TABLE as ROWS

_UNREAD_IMAGES = frozenset({".jp2", ".psd", ".svg", ".raw", ".dng", ".exr"})
_TEXT_SUFFIXES = frozenset({".txt", ".caption", ".cap", ".json"})
_NO_CAPTIONS = frozenset({"lint_ignore.txt", "readme.txt", "license.txt", "classes.txt"})
_LOOKED_INTO = 1000
"""Folders below one without images that are looked into."""


class ConvertedImage(NamedTuple):
    """An image file that is converted to sRGB."""

    path: str
    colours: str
    """What it is converted from: `Display P3`."""

    is_hdr: bool
    """Whether light above the white of a page is clipped."""


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

    converted: tuple[ConvertedImage, ...] = ()
    """Images, control images, worse ones and masks whose colours are not sRGB."""

    mask_looks: tuple[MaskLook, ...] = ()
    """What the pixels of its masks tell, of those that were measured."""


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

    held_out: tuple[tuple[str, str], ...] = ()
    """Folders that are trained on, and that their names keep from the training."""

    mask_faults: tuple[tuple[str, str], ...] = ()
    """Masks that are probably not meant as they are read, and why."""

    questions: tuple[tuple[str, str], ...] = ()
    """Folders whose numbers are probably no repeats, and why."""

    scan_cache: ScanCache = field(default_factory=ScanCache, compare=False)
    """Known facts of the files. Only a run saves it: a plan writes nothing."""

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        return tuple(chain.from_iterable(folder.samples for folder in self.folders))

    @property
    def converted(self) -> tuple[ConvertedImage, ...]:
        """The files whose colours are not sRGB, each once, in the order of the folders. The plan counts them, `lint`
        lists those of HDR."""
        return tuple(dict.fromkeys(chain.from_iterable(folder.converted for folder in self.folders)))

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
    findings = ScanFindings(scan_cache or ScanCache(), read_captions)
    folders = _find(datasets, findings)
    if [folder for folder in folders if folder.slots or folder.dataset.image_suffix]:
        _note_partners(folders, also, findings)
    check_images(folders, trigger_word, forgiven, findings)
    infos = tuple(_build(folder, trigger_word, reg_weight) for folder in folders)
    notes = (*filter(None, (info.note for info in infos)), *findings.notes)
    unused, unpaired, held_out = map(tuple, (findings.unused, findings.unpaired, findings.held_out))
    return DatasetScan(
        infos,
        notes,
        unused,
        unpaired,
        held_out,
        mask_faults=tuple(findings.mask_faults),
        questions=tuple(findings.questions),
        scan_cache=findings.scan_cache,
    )


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


def find_images(
    dataset: DatasetConfig, listings: Iterable[DirectoryListing] = ()
) -> tuple[list[FoundImage], list[Diagnostic], list[str]]:
    """The images of a dataset as a scan finds them, errors, and notes. Only caption files are read.

    listings: of its folders that were read already, with known captions; they get the others.
    """
    scan_cache = ScanCache()
    for listing in listings:
        scan_cache.take(listing)
    findings, images = ScanFindings(scan_cache, read_captions=True), list[FoundImage]()
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


# ---------------------------------------------------------------- find: names of files


def _find(datasets: Sequence[DatasetConfig], findings: ScanFindings) -> list[FoundFolder]:
    """The folders with images, and for each image its caption, control images and mask."""
    folders: list[FoundFolder] = []
    for index, dataset in enumerate(datasets):
        own = [folder for folder in _image_folders(index, dataset, findings) if _accept(folder, findings)]
        _take_table_above(dataset, own, findings)
        of_table: dict[str, list[FoundFolder]] = {}
        for folder in own:
            # One that is empty could not be read.
            if folder.table and dataset.folder_path:
                of_table.setdefault(str(folder.table_path), []).append(folder)
        for path, with_table in of_table.items():
            _place_table(dataset, path, with_table, findings)
        if dataset.columns != NO_COLUMNS and own and not any(folder.table is not None for folder in own):
            what = "'columns' is given, and no table of captions is read. Give one as 'captions_file'"
            findings.notes.append(f"warning: {dataset.place}: {what}, or take 'columns' out")
        names_pairs = any(row.references for folder in own for row in (folder.table or {}).values())
        if dataset.folder_path and not names_pairs:
            _note_pair_folders(dataset, {str(folder.subfolder): folder.listing.images for folder in own}, findings)
        # The table may name all images of a folder as control images of others.
        folders += [folder for folder in own if folder.listing.images or folder.table_path not in findings.of_pairs]
    for folder in folders:
        folder.slots = _slots(folder, findings)
    slots = [(slot, folder.listing.images) for folder in folders for slot in folder.slots]
    wanted = looked_for(slots) if slots else {}
    for folder in folders:
        _match_files(folder, wanted, findings)
    return folders


def _place_table(dataset: DatasetConfig, path: str, folders: Sequence[FoundFolder], findings: ScanFindings) -> None:
    """Brings the rows of a table to the names of the images, and notes images and rows without each other."""
    table = folders[0].table or {}
    if path in findings.of_pairs:
        _leave_out_partners(dataset, path, folders, findings)
    images = [*chain.from_iterable(folder.image_names() for folder in folders)]
    rows, begin = placed(table, path, dataset.folder_path, images)
    for folder in folders:
        folder.table = rows
    if begin:
        findings.notes.append(f"{path}: {begin!r} at the beginning of its names is left out")
    names = dict.fromkeys(chain.from_iterable(folder.table_names() for folder in folders))
    unused = [name for name in rows if name not in names]
    if len(unused) == len(rows):
        what = f"none of its {count_of(len(rows), 'line')} names an image of {dataset.place}"
        findings.mistake(path, f"{what}. {_unlike(unused, list(names))}")
        return
    if unnamed := [name for name in names if name not in rows]:
        what = f"{len(unnamed)} of {len(names)} images have no line in {path}"
        findings.notes.append(f"{dataset.place}: {what}: {shorten(unnamed)}")
    if unused:
        what = f"{len(unused)} of {len(rows)} lines name no image of {dataset.place}"
        findings.notes.append(f"{path}: {what}: {shorten(unused)}")


def _leave_out_partners(
    dataset: DatasetConfig, path: str, folders: Sequence[FoundFolder], findings: ScanFindings
) -> None:
    """Leaves out the images that a table names as control images or masks of others, and that have no row."""
    bases = (dataset.folder_path, os.path.dirname(path), ".")
    named = chain.from_iterable((*row.references, row.mask) for row in (folders[0].table or {}).values())
    places = (next(filter(os.path.isfile, _places(name, bases)), "") for name in named if name)
    partners = {os.path.realpath(place) for place in places if place}
    left_out = []
    for folder in folders:
        called = dict(zip(folder.listing.images, folder.table_names(), strict=True))
        rows, images = folder.table or {}, folder.listing.images
        files = {stem: os.path.realpath(folder.listing.path(names[0])) for stem, names in images.items()}
        alone = [stem for stem, file in files.items() if file in partners and called[stem] not in rows]
        left_out += [called[stem] for stem in alone]
        folder.listing = replace(folder.listing, images={stem: images[stem] for stem in images if stem not in alone})
    if left_out:
        what = f"{count_of(len(left_out), 'image')} not trained, as control images or masks of others"
        findings.notes.append(f"{path}: {what}: {shorten(left_out)}")


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


def _image_folders(index: int, dataset: DatasetConfig, findings: ScanFindings) -> Iterator[FoundFolder]:
    """The image folders of one entry: its own, or its subfolders."""
    path, table = dataset.folder_path, None
    if files := _parquet_files(dataset, findings):
        yield from _folders_of_parquet(index, dataset, files, findings)
        return
    if dataset.captions_file is not None:
        # Images of a folder are found by what follows the folders of another machine, where that is sure.
        if lost := lost_folders(dataset.captions_file, dataset.path_map, not path, dataset.columns):
            for folder in lost:
                what = f"names files in {folder}, which is not on this machine"
                remedy = f"--map {shlex.quote(f'{folder}=NEW')}"
                findings.mistake(dataset.captions_file, f"{what}. Where it lies elsewhere: {remedy}")
            return
        given = read_table(dataset.captions_file, dataset.path_map, dataset.columns)
        if not given.rows and not given.mistakes:
            what = "has votes for neither of two images alone" if given.undecided else "has no line"
            remedy = "Vote on more" if given.undecided else "Write one for each image"
            findings.mistake(dataset.captions_file, f"{what}. {remedy}, or take 'captions_file' out")
            return
        table = _taken(dataset, given, os.path.dirname(dataset.captions_file), findings)
        if not path:
            file = dataset.captions_file
            yield from _folders_of_table(index, dataset, table, file, os.path.dirname(file) or ".", findings)
            return
    if (top := findings.listing(path)) is None:
        return
    if top.images:
        # Loose images beside subfolders with repeats would be all that is used.
        named = [name for name in _subfolders(top, dataset) if REPEATS.match(name)]
        filled = [name for name in named if (listing := findings.listing(join(path, name))) and listing.images]
        if filled and dataset.repeats_from_names is not False and not matched_name(path, REPEATS):
            loose = shorten(chain.from_iterable(top.images.values()))
            what = f"holds images itself ({loose}), so those in {shorten(filled)} would not be used"
            findings.mistake(path, f"{what}. Move the loose images away, or give each subfolder as a dataset")
        images = _without_partners(top, dataset)
        if not images.images:
            example = next(chain.from_iterable(top.images.values()))
            what = f"no name of an image in it ends with image_suffix {dataset.image_suffix!r}"
            findings.mistake(path, f"{what}. It has {example!r}: write the suffix with its letters")
        yield FoundFolder(index, dataset, images, None, table, dataset.captions_file, top)
        return
    listings = [(name, findings.listing(join(path, name))) for name in _subfolders(top, dataset)]
    empty = [name for name, listing in listings if listing and not listing.images]
    for name, listing in listings:
        if listing and listing.images:
            images = _without_partners(listing, dataset)
            yield FoundFolder(index, dataset, images, name, table, dataset.captions_file, listing)
    if len(listings) > 1:
        _note_splits(dataset, [name for name, listing in listings if listing and listing.images], findings)
    if not any(listing and listing.images for _, listing in listings):
        deeper = [*_folders_of_deeper_table(index, dataset, top, findings)] if table is None else []
        yield from deeper
        if deeper:
            return
    below = _images_below([join(path, name) for name in empty], dataset, findings) if empty else []
    if not any(listing and listing.images for _, listing in listings):
        remedy = f"Supported: {', '.join(sorted(IMAGE_SUFFIXES))}"
        if below:
            above = {folder.rpartition("/")[0] if matched_name(folder, REPEATS) else folder for folder in below}
            remedy = f"{shorten(map(repr, below))} {'does' if len(below) == 1 else 'do'}: give {shorten(sorted(above))}"
        findings.mistake(path, f"holds no images (seen: {top.describe()}). {remedy}")
    elif below:
        what = f"{shorten(below)} {'holds' if len(below) == 1 else 'hold'} images that are not used"
        remedy = "Only direct subfolders are looked into: give it as a dataset"
        findings.notes.append(f"warning: {path}: {what}. {remedy}")
    elif empty:
        findings.notes.append(f"{path}: subfolders without images ignored: {shorten(empty)}")


def _note_splits(dataset: DatasetConfig, names: Sequence[str], findings: ScanFindings) -> None:
    """Notes subfolders whose names say that they are for validation or test, and that are trained."""
    path = dataset.folder_path
    if held := held_out_folders(names):
        train = next(name for name in names if split_of(name) == "train")
        for name in held:
            remedy = f"For {train!r} alone give 'folder_path: {join(path, train)}'"
            what = "is trained on, and its name keeps it from the training"
            findings.held_out.append((join(path, name), f"{what}. {remedy}"))
        shown = " and ".join(map(repr, held))
        what = f"its subfolders {shown} are trained on, and their names keep them from the training"
        measured = f"(the validation takes 'validation: {{folder_path: {join(path, held[0])}}}')"
        findings.notes.append(f"warning: {path}: {what}. {remedy} {measured}")


def _taken(dataset: DatasetConfig, table: Table, folder: str, findings: ScanFindings) -> dict[str, TableRow]:
    """The rows of a table that is used; its mistakes, and the columns that are not used, are told. folder: that the
    table lies in, as the user wrote it."""
    findings.mistakes += table.mistakes
    if table.is_of_pairs:
        findings.of_pairs.add(table.path)
    if table.undecided:
        what = f"{count_of(table.undecided, 'vote')} for neither of two images: not used"
        findings.notes.append(f"{table.called}: {what}")
    bases = dict.fromkeys((dataset.folder_path, folder, os.path.dirname(table.path), "."))

    def is_file(path: str) -> bool:
        return any(os.path.isfile(place) for place in _places(path, bases))

    for column in (files := table.unused_files(is_file)):
        what = f"its column {column!r} names {count_of(len(table.unused[column]), 'file')} and is not used"
        name = column_in_yaml(column)
        says = f"Say what it is: 'columns: {{control: {name}}}' (or mask, worse, image), 'columns: {{ignore: {name}}}'"
        findings.mistake(table.called, f"{what}. {says} where it is not meant")
    if others := [column for column in table.unused if column not in files]:
        named = shorten(column or "one without a title" for column in others)
        what = f"columns that are not used: {named}"
        findings.notes.append(f"{table.called}: {what}")
        names = ", ".join(map(column_in_yaml, others))
        remedy = f"Say what they are with 'columns', or 'columns: {{ignore: [{names}]}}'"
        findings.unused.append((table.called, f"{what}. {remedy}"))
    return table.rows


def _places(path: str, bases: Iterable[str]) -> list[str]:
    """Where a file may lie that a table names: from each of these folders, with `\\` for `/` too."""
    written = dict.fromkeys((path, path.replace("\\", "/")))
    places = [path] if os.path.isabs(path) else [join(base or ".", each) for base in bases for each in written]
    return [os.path.expanduser(place) for place in places]


def _folders_of_deeper_table(
    index: int, dataset: DatasetConfig, top: DirectoryListing, findings: ScanFindings
) -> Iterator[FoundFolder]:
    """The folders of the images that the only table in a folder names, further down than its subfolders."""
    tables = _tables(top, dataset, top.files)
    found = [table for table in tables if any(os.path.isfile(top.path(name)) for name in table.rows)]
    if len(found) == 1 and dataset.captions != "names":
        (table,) = found
        findings.notes.append(f"{top.folder}: the images are those that {table.path} names")
        rows = _taken(dataset, table, top.folder, findings)
        yield from _folders_of_table(index, dataset, rows, table.path, top.folder, findings)


def _note_pair_folders(dataset: DatasetConfig, inside: Mapping[str, Collection[str]], findings: ScanFindings) -> None:
    """Notes two subfolders that look like the images and control images of pairs, which both are trained."""
    if not dataset.control_path and (pair := pair_folders(inside)):
        images, controls = (join(dataset.folder_path, name) for name in pair)
        looks = f"its subfolders {pair[0]!r} and {pair[1]!r} look like pairs, and each image is trained by itself"
        looks = f"{looks}. For pairs give 'folder_path: {images}' and 'control_path: {controls}'"
        findings.notes.append(f"warning: {dataset.folder_path}: {looks}")
        findings.unpaired.append((dataset.folder_path, looks))


def _images_below(folders: Sequence[str], dataset: DatasetConfig, findings: ScanFindings) -> list[str]:
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


def _parquet_files(dataset: DatasetConfig, findings: ScanFindings) -> list[str]:
    """The Parquet files with pictures of a dataset: the file that it names, or those in a folder without images and in
    its subfolders, as the hub has them."""
    path = dataset.folder_path or str(dataset.captions_file)
    place = os.path.expanduser(path)
    if os.path.isfile(place):
        is_one = is_parquet(place) and (bool(dataset.folder_path) or has_pictures(place))
        return [path] if is_one else []
    if dataset.captions_file or not os.path.isdir(place):
        return []
    found, level = list[str](), [path]
    for depth in range(_PARQUET_DEPTH + 1):
        listings = []
        for folder in level[:_LOOKED_INTO]:
            with suppress(OSError):  # it is told where the folder is looked for images
                listings.append(findings.scan_cache.listing(folder))
        if depth < _PARQUET_DEPTH and any(listing.images for listing in listings):
            return []
        for listing in listings:
            names = [name for name in listing.files.values() if split_suffix(name)[1] == PARQUET]
            found += [join(listing.folder, name) for name in names if has_pictures(listing.path(name))]
        level = [join(listing.folder, name) for listing in listings for name in listing.subfolders]
    return sorted(found)


_PARQUET_DEPTH = 2
"""So many folders down the hub has Parquet files: `data/`, or a configuration with its splits."""


def _folders_of_parquet(
    index: int, dataset: DatasetConfig, files: Sequence[str], findings: ScanFindings
) -> Iterator[FoundFolder]:
    """The folders of the pictures in Parquet files, which are unpacked into the cache: those that their rows name as
    the image. Files for validation and test beside others are left out."""
    if is_missing():
        findings.mistake(dataset.place, MISSING)
        return
    splits = {file: _split_of_file(file) for file in files}
    held = [file for file, split in splits.items() if split in ("validation", "test")]
    if held and len(held) < len(files):
        what = "left out, as their names keep them from the training"
        findings.notes.append(f"warning: {dataset.place}: {count_of(len(held), 'file')} {what}: {shorten(held)}")
        files = [file for file in files if file not in held]
    for file in files:
        try:
            top = findings.scan_cache.listing(file)
        except OSError as error:
            findings.mistake(file, str(error.strerror or error))
            continue
        table = read_table(top.path(ROWS), given=dataset.columns, called=file)
        rows = _taken(dataset, table, os.path.dirname(table.path), findings)
        yield from _folders_of_table(index, dataset, rows, table.path, file, findings)


def _split_of_file(path: str) -> str:
    """What the name of a Parquet file of the hub, or of its folder, says of the use of its rows."""
    folder, name = os.path.split(path)
    return split_of(re.split(r"[-._ ]", name)[0]) or split_of(os.path.basename(folder))


def _folders_of_table(
    index: int, dataset: DatasetConfig, table: dict[str, TableRow], path: str, place: str, findings: ScanFindings
) -> Iterator[FoundFolder]:
    """The folders of the images that a table names, with these images alone. path: of the table. place: the folder that
    its names begin at."""
    table = {with_slashes(name, place): row for name, row in table.items()}
    inside: dict[str, set[str]] = {}
    for name in table:
        inside.setdefault(os.path.dirname(name), set()).add(name)
    if addresses := [name for name in table if name.startswith(("http:/", "https:/"))]:
        what = (
            f"names {count_of(len(addresses), 'address', 'addresses')}, such as {addresses[0]!r}, and images are files"
        )
        findings.mistake(path, f"{what}. Download them, and write the names of the files")
        return
    for subfolder, names in inside.items():
        start = join(place, subfolder) if subfolder else place
        is_there = os.path.isdir(os.path.expanduser(start)) or archive_in(start)
        if subfolder and not is_there and os.path.isdir(subfolder):
            start = subfolder  # from the working directory, as musubi-tuner writes them
        if listing := findings.listing(start):
            folder = FoundFolder(index, dataset, listing, subfolder or None, table, path, listing)
            called = dict(zip(listing.images, folder.table_names(), strict=True))
            images = {stem: files for stem, files in listing.images.items() if called[stem] in names}
            folder.listing = replace(listing, images=images)
            for name in sorted(names.difference(called.values())):
                line = line_naming(path, name, dataset.path_map, dataset.columns)
                findings.mistake(folder.listing.path(os.path.basename(name)), f"is named in {line} and is not an image")
            yield folder


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


def _accept(folder: FoundFolder, findings: ScanFindings) -> bool:
    """Notes what a folder holds beside images and captions; False where its name rules it out.

    Where no image has a caption file, the captions of the only table in the folder that names its images are taken.
    """
    dataset, listing = folder.dataset, folder.listing
    if not dataset.folder_path:  # what its table does not name is not meant
        return True
    repeats = matched_name(listing.folder, REPEATS) if dataset.repeats_from_names is not False else ""
    if repeats and not int(repeats) and not dataset.num_repeats:
        findings.mistake(listing.folder, "its name asks for 0 repeats. Give 1 or more, or take it out")
        return False
    captions = _caption_files(folder)
    by_name = dataset.captions == "names"
    if folder.table is None and findings.read_captions and not by_name and not any(map(any, captions)):
        _take_table_beside(folder, findings)
        captions = _caption_files(folder)
    caption_ext = dataset.caption_ext if folder.table is None and not by_name else ()
    used, ignored = set(chain.from_iterable(captions)), dict[tuple[str, str], list[str]]()
    for name, written in listing.files.items():
        if written not in used:
            why = _why_ignored(name, listing, caption_ext, dataset)
            ignored.setdefault(why, []).append(written)
    for (reason, remedy), names in ignored.items():
        if remedy:
            _not_used(listing, names, reason, remedy, findings, findings.unused)
        else:
            findings.notes.append(f"{listing.folder}: ignored, {reason}: {shorten(names)}")
    by_table = any(row.references for row in (folder.table or {}).values())
    if not (dataset.image_suffix or dataset.control_suffix or by_table) and (pairs := pair_names(listing.images)):
        optional = ", control_optional: true" if pairs.optional else ""
        controls = ", ".join(map(in_yaml, pairs.controls))
        given = f"image_suffix: {in_yaml(pairs.image)}, control_suffix: [{controls}]{optional}"
        looks = f"its images look like pairs, and each is trained by itself. For pairs give '{given}'"
        findings.notes.append(f"warning: {listing.folder}: {looks}")
        findings.unpaired.append((listing.folder, looks))
    if subfolders := _subfolders(listing, dataset):
        findings.notes.append(f"{listing.folder}: holds images itself; subfolders ignored: {shorten(subfolders)}")
    return True


def _caption_files(folder: FoundFolder) -> list[list[str]]:
    """The files of the folder that are read for captions: for each suffix those of the images, or the one table."""
    if folder.dataset.captions == "names":
        return []
    if folder.table_path is None:
        return caption_files(folder.listing, folder.dataset.caption_ext, folder.dataset.image_suffix)
    place, name = os.path.split(folder.table_path)
    return [[name]] if real_path(place or ".") == real_path(folder.listing.folder) else []


def _why_ignored(
    name: str, listing: DirectoryListing, caption_ext: Sequence[str], dataset: DatasetConfig
) -> tuple[str, str]:
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
            why = "captions is names" if dataset.captions == "names" else "captions_file is given"
            return f"not a caption, because {why}", ""
        return f"not a caption, because caption_ext is {' '.join(caption_ext)}", f"Add {suffix} to caption_ext"
    names = [image_name(files[0]) for files in listing.images.values()]
    if caption_ext and any(_names_any(table, listing.prefix, names) for table in _tables(listing, dataset, [name])):
        return _OTHER_TABLE
    return "not an image", ""


_OTHER_TABLE = "captions of images that have caption files, or another table", "Give one as 'captions_file'"


def _tables(listing: DirectoryListing, dataset: DatasetConfig, names: Iterable[str]) -> Iterator[Table]:
    """The tables of captions among the files of a folder, read. names: as in `listing.files`."""
    for name in names:
        stem, suffix = split_suffix(name)
        if suffix in TABLES and stem not in listing.images and listing.files[name] not in listing.no_files:
            yield read_table(listing.path(listing.files[name]), dataset.path_map, dataset.columns)


def _names_any(table: Table, folder: str, names: Sequence[str]) -> bool:
    """Whether a table names an image of a folder. names: of the images, from that folder."""
    rows, _ = placed(table.rows, table.path, folder, names)
    return any(name in rows or split_suffix(name)[0] in rows for name in names)


def _is_meant(table: Table, names: Sequence[str]) -> bool:
    """Whether a table that names no image of its folder is one of images: by its rows, or, where they cannot be read,
    by a name of an image in the file. names: of the images."""
    is_json = split_suffix(table.path)[1] == ".json" and not any(NO_JSON in each.message for each in table.mistakes)
    if is_json or not table.mistakes:  # objects of other programs mention images too
        says = (name for name, row in table.rows.items() if row.caption or row.references or row.worse)
        return any(split_suffix(name)[1] in IMAGE_SUFFIXES for name in says)
    if split_suffix(table.path)[1] == PARQUET:  # its text is packed; `datasets` names such a table so
        return os.path.basename(table.path) == "metadata.parquet"
    with suppress(OSError), open(table.path, "rb") as file:
        raw = file.read(_LOOKED_THROUGH)
        bare = [os.path.basename(name) for name in names[:_LOOKED_FOR]]
        return any(name.encode() in raw or name.encode("utf-16-le") in raw for name in bare)
    return False


_LOOKED_THROUGH = 64 << 20
"""Bytes of a table that cannot be read in which names of images are looked for."""

_LOOKED_FOR = 100
"""So many names of images are looked for in a table that cannot be read."""


def _only_table(
    listing: DirectoryListing, folder: str, names: Sequence[str], dataset: DatasetConfig, findings: ScanFindings
) -> Table | None:
    """The only table in a folder that names its images, none of which has a caption file; else None. One that is meant
    for images, and names none of these or cannot be read, is a mistake: their captions would be lost.

    folder: that the names begin at.
    """
    tables = [*_tables(listing, dataset, listing.files)]
    found = [table for table in tables if _names_any(table, folder, names)]
    if len(found) == 1:
        return found[0]
    if not found:
        for table in tables:
            if _is_meant(table, names):
                findings.mistakes += map(_found, table.mistakes or [_of_others(table, folder, names)])
    return None


def _found(mistake: Diagnostic) -> Diagnostic:
    """The mistake of a table that was found, with what to do where it is none of captions."""
    why = "It is read because no image has a caption file; if it is not for them, move it away"
    return replace(mistake, message=f"{mistake.message}. ({why}.)")


def _of_others(table: Table, folder: str, names: Sequence[str]) -> Diagnostic:
    what = f"none of its {count_of(len(table.rows), 'line')} names an image of the folder, and no image has a caption"
    return Diagnostic((table.path,), f"{what}. {_unlike(list(table.rows), names)}")


def _take_table_beside(folder: FoundFolder, findings: ScanFindings) -> None:
    """Takes the captions of the only table in the folder that names its images."""
    listing, dataset = folder.listing, folder.dataset
    names = [image_name(files[0]) for files in listing.images.values()]
    if table := _only_table(listing, listing.prefix, names, dataset, findings):
        rows = _taken(dataset, table, listing.folder, findings)
        rows, _ = placed(rows, table.path, listing.prefix, names)
        inside = f"{folder.subfolder}/" if folder.subfolder else ""
        folder.table_path = table.path
        folder.table = {inside + name: row for name, row in rows.items()}
        findings.notes.append(f"{listing.folder}: no caption files: captions are read from {table.path}")


def _take_table_above(dataset: DatasetConfig, folders: Sequence[FoundFolder], findings: ScanFindings) -> None:
    """Takes the captions of the only table above the subfolders that names their images, for those that have neither
    caption files nor a table of their own."""
    below = [folder for folder in folders if folder.subfolder]
    if not (below and dataset.folder_path and findings.read_captions) or dataset.captions_file:
        return
    if dataset.captions == "names":
        return
    if (top := findings.listing(dataset.folder_path)) is None:
        return
    bare = [folder for folder in below if folder.table is None and not any(map(any, _caption_files(folder)))]
    names = [*chain.from_iterable(folder.image_names() for folder in (bare or below))]
    table = _only_table(top, dataset.folder_path, names, dataset, findings) if bare else None
    if table is None:
        used = {folder.table_path for folder in folders}
        tables = [each for each in _tables(top, dataset, top.files) if each.path not in used]
        tables = [each for each in tables if _names_any(each, dataset.folder_path, names)]
        if tables:
            _not_used(top, [os.path.basename(each.path) for each in tables], *_OTHER_TABLE, findings, findings.unused)
        return
    rows = _taken(dataset, table, top.folder, findings)
    for folder in bare:
        folder.table, folder.table_path = rows, table.path
    findings.notes.append(f"{top.folder}: no caption files: captions are read from {table.path}")


def _match_files(folder: FoundFolder, wanted: LookedFor, findings: ScanFindings) -> None:
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
        if dataset.captions == "names":
            folder.captions = [caption_of_name(stem.removesuffix(dataset.image_suffix)) for stem in listing.images]
        elif dataset.caption_from_name:
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
            if row.mask:
                masks = _named_files(folder, [row.mask], "as a mask", findings)
                folder.masks |= dict(zip([stem], masks, strict=False))
            if row.weight != 1.0:
                folder.weights[stem] = row.weight
    for (_, image), text in zip(folder.images(), folder.captions, strict=True):
        if LIST in text and dataset.captions == "one" and findings.read_captions:
            reason = f"has a list of {text.count(LIST) + 1} captions. Give 'captions: lines', or one of them as text"
            findings.mistake(image.path, reason)
    folder.named, masked = set(folder.controls), set(folder.masks)
    for slot in folder.slots:
        for stem, image in folder.images():
            if stem in (folder.named if slot.key == "control" else masked):
                continue
            found = partners_of(stem, image, slot, wanted, findings.mistakes)
            if slot.key == "control":
                folder.controls[stem] = (*folder.controls.get(stem, ()), *found)
            elif found:
                folder.masks[stem] = found[0]
    if dataset.alpha_mask:
        folder.masks = dict(folder.images())


def _named_files(folder: FoundFolder, paths: Iterable[str], named: str, findings: ScanFindings) -> Iterator[ImageFile]:
    """The images that a row of the table names: in the folder of the images, else from that of the table."""
    for path in paths:
        places = _places(path, (folder.dataset.folder_path, os.path.dirname(folder.table_path or ""), "."))
        found = next((place for place in places if os.path.isfile(place)), places[0])
        listing = findings.listing(os.path.dirname(found))
        if listing and os.path.basename(found) in listing.versions:
            yield ImageFile(listing, os.path.basename(found))
        elif listing:
            place = line_naming(str(folder.table_path), path, folder.dataset.path_map, folder.dataset.columns)
            findings.mistake(found, f"is named in {place} {named} and is not there")


def _slots(folder: FoundFolder, findings: ScanFindings) -> list[Slot]:
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


def _note_partners(folders: Sequence[FoundFolder], also: Sequence[DatasetConfig], findings: ScanFindings) -> None:
    """Notes control images and masks that belong to no image, and those that several images share by their name.

    also: further datasets, whose images use such files.
    """
    others = _find(also, ScanFindings(findings.scan_cache, read_captions=False)) if also else []
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


def _note_shared(folders: Sequence[FoundFolder], findings: ScanFindings) -> None:
    """Notes control images and masks that several images of one dataset have by their name, and images that are named
    like such a file."""
    for folder in folders:
        ends = tuple(slot.end for slot in folder.slots if slot.end)
        if lone := [files[0] for stem, files in folder.listing.images.items() if ends and stem.endswith(ends)]:
            what = f"named like control images or masks, and trained as images: {shorten(lone)}"
            remedy = "Remove them, or add the images without the ending"
            findings.notes.append(f"warning: {folder.listing.folder}: {count_of(len(lone), 'file')} {what}. {remedy}")
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
            more = f" ({count_of(len(found) - 1, 'more file')} likewise)" if len(found) > 1 else ""
            what = f"is the one of {len(images)} images: {shorten(images)}{more}"
            remedy = "Where each image has its own, put them into subfolders named as those of the images"
            findings.notes.append(f"warning: {partner}: {what}. {remedy}")


def _not_used(
    listing: DirectoryListing,
    names: Sequence[str],
    reason: str,
    remedy: str,
    findings: ScanFindings,
    kept: list[tuple[str, str]],
) -> None:
    """Notes files that are not used though they seem meant to be, and keeps them among others."""
    note = f"{listing.folder}: {count_of(len(names), 'file')} not used, {reason}: {shorten(names)}. {remedy}"
    findings.notes.append(f"warning: {note}")
    kept += [(listing.path(name), f"{reason}. {remedy}") for name in names]


# ---------------------------------------------------------------- build: the samples


def _build(folder: FoundFolder, trigger_word: str | None, reg_weight: float) -> FolderInfo:
    """The samples of a folder."""
    dataset, listing = folder.dataset, folder.listing
    named = matched_name(listing.folder, REPEATS) if dataset.repeats_from_names is not False else ""
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
    masks = folder.trained_masks()
    captions = [
        tuple(trained_caption(each, dataset, rules, add_trigger) for each in texts_of(text, dataset))
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
        [weight * folder.weights.get(stem, 1.0) for stem in listing.images],
        repeat(dataset.canvas),
        repeat(NO_FLIP),
        repeat(folder.index),
        [texts if len(texts) > 1 else () for texts in captions],
        [tuple(image.path for image in folder.worse.get(stem, ())) for stem in listing.images],
        [folder.weights.get(stem, 1.0) for stem in listing.images],
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
    converted = tuple(_converted(folder))
    is_reg = dataset.is_reg
    mask_looks = tuple(look for _, look in folder.mask_looks)
    return FolderInfo(
        folder.index,
        listing.folder,
        folder.repeats,
        samples,
        missing,
        note,
        is_reg,
        with_alpha,
        converted,
        mask_looks,
    )


def _converted(folder: FoundFolder) -> Iterator[ConvertedImage]:
    """The files of a folder's images, and of what belongs to them, whose colours are not sRGB."""
    worse = chain.from_iterable(folder.worse.get(stem, ()) for stem in folder.listing.images)
    partners = (image for stem, image in folder.partners() if stem in folder.listing.images)
    own = (image for _, image in folder.images())
    for image in chain(own, partners, worse):
        if (facts := image.facts) and facts.colours:
            yield ConvertedImage(image.path, facts.colours, facts.is_hdr)
