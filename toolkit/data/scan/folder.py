"""From folders of images to samples: repeats from folder names; captions, control images and masks matched by name.

A dataset is one folder of images, or a folder whose direct subfolders hold them. A leading `<int>_` in the name of the
folder that holds the images is how often each is used per epoch.

A scan has three stages: `_find` matches names of files, `folder_check` reads the images, `_build` makes the samples.
Every offending file is collected before anything is reported, and files that are not used are listed with the reason.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, repeat
from typing import Any, NamedTuple

from toolkit.config.sections.dataset import DatasetConfig
from toolkit.contracts.data import NO_FLIP, Flip, Sample
from toolkit.data.pixels.images import (
    IMAGE_SUFFIXES,
)
from toolkit.data.scan.captions import (
    LIST,
    caption_of_name,
    caption_rules,
    find_captions,
    trained_caption,
)
from toolkit.data.scan.directory import DirectoryListing, ScanCache, join, real_path, split_suffix
from toolkit.data.scan.folder_check import check_images
from toolkit.data.scan.folder_tables import (
    OTHER_TABLE,
    folders_of_deeper_table,
    folders_of_parquet,
    folders_of_table,
    named_files,
    names_any,
    parquet_files,
    place_table,
    tables_in,
    take_table_above,
    take_table_beside,
    taken,
)
from toolkit.data.scan.found import (
    LOOKED_INTO,
    FoundFolder,
    ScanFindings,
    count_of,
    held_out_folders,
    matched_name,
    shorten,
    split_of,
    texts_of,
)
from toolkit.data.scan.masks import MaskLook
from toolkit.data.scan.partners import (
    LAYER,
    LookedFor,
    Slot,
    captions_beside,
    in_yaml,
    layers_beside,
    looked_for,
    pair_folders,
    pair_names,
    partners_of,
    root_of,
    shared,
    unpaired,
    with_affix,
)
from toolkit.data.scan.repeats import REPEATS
from toolkit.data.scan.tables import (
    NO_COLUMNS,
    TableRow,
    image_name,
    lost_folders,
)
from toolkit.errors import Diagnostic
from toolkit.files.archives import SUFFIX as ZIP

_UNREAD_IMAGES = frozenset({".jp2", ".psd", ".svg", ".raw", ".dng", ".exr"})
_TEXT_SUFFIXES = frozenset({".txt", ".caption", ".cap", ".json"})
_NO_CAPTIONS = frozenset({"lint_ignore.txt", "readme.txt", "license.txt", "classes.txt"})


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

    has_default: bool = False
    """Whether images without a caption train with `default_caption`."""


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

    prompt_faults: tuple[tuple[str, str], ...] = ()
    """Files of prompts for the base model (`from_base`), and what is rarely meant in them."""

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
    made: Sequence[FolderInfo] = (),
) -> DatasetScan:
    """Samples of all `datasets` sections, each file read once. Raises DataErrors naming every offender.

    reg_weight: factor on the loss of regularisation images. scan_cache: results of earlier scans, which is updated; it
    makes the scan faster and does not change its result. forgiven: takes the errors instead, and the images that have
    one are left out. read_captions: whether the training does; otherwise missing ones are not reported. also: other
    sections, whose control images are not left over. made: what the base model makes for entries with `from_base`,
    which have no folder.
    """
    findings = ScanFindings(scan_cache or ScanCache(), read_captions)
    folders = _find(datasets, findings)
    if [folder for folder in folders if folder.slots or folder.dataset.image_suffix]:
        _note_partners(folders, also, findings)
    check_images(folders, trigger_word, forgiven, findings)
    found = (_build(folder, trigger_word, reg_weight) for folder in folders)
    infos = tuple(sorted((*found, *made), key=lambda info: info.dataset))
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
        columns = [] if table else folder.caption_files()
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
        if dataset.from_base:
            continue
        own = [folder for folder in _image_folders(index, dataset, findings) if _accept(folder, findings)]
        take_table_above(dataset, own, findings)
        _note_splits(dataset, own, findings)
        of_table: dict[str, list[FoundFolder]] = {}
        for folder in own:
            # One that is empty could not be read.
            if folder.table and dataset.folder_path:
                of_table.setdefault(str(folder.table_path), []).append(folder)
        for path, with_table in of_table.items():
            place_table(dataset, path, with_table, findings)
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


def _image_folders(index: int, dataset: DatasetConfig, findings: ScanFindings) -> Iterator[FoundFolder]:
    """The image folders of one entry: its own, or its subfolders."""
    if files := parquet_files(dataset, findings):
        yield from folders_of_parquet(index, dataset, files, findings)
        return
    table = None
    if dataset.captions_file is not None:
        table = _given_table(dataset, dataset.captions_file, findings)
        if table is None:
            return
        if not dataset.folder_path:
            file = dataset.captions_file
            yield from folders_of_table(index, dataset, table, file, os.path.dirname(file) or ".", findings)
            return
    top = findings.listing(dataset.folder_path)
    if top is None:
        return
    if top.images:
        yield _own_images(index, dataset, top, table, findings)
    else:
        yield from _subfolders_with_images(index, dataset, top, table, findings)


def _given_table(dataset: DatasetConfig, file: str, findings: ScanFindings) -> dict[str, TableRow] | None:
    """The rows of `captions_file`; None where it cannot be used, which is a mistake."""
    given = findings.table(file, dataset)
    # Images of a folder are found by what follows the folders of another machine, where that is sure.
    if lost := lost_folders(given, images=not dataset.folder_path):
        for folder in lost:
            what = f"names files in {folder}, which is not on this machine"
            findings.mistake(file, f"{what}. Where it lies elsewhere: --map {shlex.quote(f'{folder}=NEW')}")
        return None
    if not given.rows and not given.mistakes:
        what = "has votes for neither of two images alone" if given.undecided else "has no line"
        remedy = "Vote on more" if given.undecided else "Write one for each image"
        findings.mistake(file, f"{what}. {remedy}, or take 'captions_file' out")
        return None
    return taken(dataset, given, os.path.dirname(file), findings)


def _own_images(
    index: int,
    dataset: DatasetConfig,
    top: DirectoryListing,
    table: dict[str, TableRow] | None,
    findings: ScanFindings,
) -> FoundFolder:
    """The folder of an entry that holds images itself."""
    path = dataset.folder_path
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
        what = f"no name of an image in it fits image_suffix {dataset.image_suffix!r}"
        findings.mistake(path, f"{what}. It has {example!r}: write the suffix with its letters")
    return FoundFolder(index, dataset, images, None, table, dataset.captions_file, top)


def _subfolders_with_images(
    index: int,
    dataset: DatasetConfig,
    top: DirectoryListing,
    table: dict[str, TableRow] | None,
    findings: ScanFindings,
) -> Iterator[FoundFolder]:
    """The subfolders of an entry that holds no images itself; else the folders of a table in it. What is not used is
    told, and none at all is a mistake."""
    path = dataset.folder_path
    named = {name: findings.listing(join(path, name)) for name in _subfolders(top, dataset)}
    listings = {name: listing for name, listing in named.items() if listing}
    filled = {name: listing for name, listing in listings.items() if listing.images}
    for name, listing in filled.items():
        images = _without_partners(listing, dataset)
        yield FoundFolder(index, dataset, images, name, table, dataset.captions_file, listing)
    if not filled and table is None:
        deeper = [*folders_of_deeper_table(index, dataset, top, findings)]
        yield from deeper
        if deeper:
            return
    empty = [name for name in listings if name not in filled]
    below = _images_below([join(path, name) for name in empty], dataset, findings)
    if not filled:
        findings.mistake(path, f"holds no images (seen: {top.describe()}). {_where_images_are(top, below)}")
    elif below:
        what = f"{shorten(below)} {'holds' if len(below) == 1 else 'hold'} images that are not used"
        remedy = "Only direct subfolders are looked into: give it as a dataset"
        findings.notes.append(f"warning: {path}: {what}. {remedy}")
    elif empty:
        findings.notes.append(f"{path}: subfolders without images ignored: {shorten(empty)}")


def _where_images_are(top: DirectoryListing, below: Sequence[str]) -> str:
    """What to give instead of a folder without images. below: folders further down that have some."""
    if below:
        above = {folder.rpartition("/")[0] if matched_name(folder, REPEATS) else folder for folder in below}
        splits = {folder: _split_within(folder.removeprefix(top.folder)) for folder in above}
        if "train" in splits.values():
            above = {folder for folder, split in splits.items() if split in ("", "train")}
        do = "does" if len(below) == 1 else "do"
        return f"{shorten(map(repr, below))} {do}: give {shorten(sorted(above))}"
    if zips := [name for name in top.files.values() if split_suffix(name)[1] == ZIP]:
        return f"Give 'folder_path: {join(top.folder, zips[0])}'{' and so on' * (len(zips) > 1)}"
    is_several = "dataset_dict.json" in top.files
    if is_several or any(split_suffix(name)[1] == ".arrow" for name in top.files):
        place = os.path.abspath(os.path.expanduser(top.folder))
        of_train = '["train"]' if is_several else ""
        saved = f"datasets.load_from_disk({json.dumps(place)}){of_train}"
        code = f"import datasets; {saved}.to_parquet({json.dumps(place + '.parquet')})"
        return f"It is what save_to_disk of 'datasets' wrote. Write it as Parquet: python -c {shlex.quote(code)}"
    return f"Supported: {', '.join(sorted(IMAGE_SUFFIXES))}"


def _split_within(path: str) -> str:
    """What the first folder of a path that says a split says."""
    return next(filter(None, map(split_of, path.split("/"))), "")


def _note_splits(dataset: DatasetConfig, folders: Sequence[FoundFolder], findings: ScanFindings) -> None:
    """Notes subfolders whose names say that they are for validation or test, and that are trained."""
    path = dataset.folder_path
    inside = {folder.subfolder: folder for folder in folders if path and folder.subfolder}
    if not (held := held_out_folders(inside)):
        return
    train = next(name for name in inside if split_of(name) == "train")
    alone = f"'folder_path: {join(path, train)}'"
    table = inside[train].table_path
    if table and real_path(os.path.dirname(table) or ".") != real_path(join(path, train)):
        alone = f"{alone} and 'captions_file: {table}'"
    remedy = f"For {train!r} alone give {alone}"
    for name in held:
        findings.held_out.append(
            (join(path, name), f"is trained on, and its name keeps it from the training. {remedy}")
        )
    shown = " and ".join(map(repr, held))
    what = f"its subfolder {shown} is trained on, and its name keeps it from the training"
    if len(held) > 1:
        what = f"its subfolders {shown} are trained on, and their names keep them from the training"
    measures = next((name for name in held if split_of(name) == "validation"), held[0])
    measured = f"(the validation takes 'validation: {{folder_path: {join(path, measures)}}}')"
    findings.notes.append(f"warning: {path}: {what}. {remedy} {measured}")


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
    for _ in range(LOOKED_INTO):
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


def _without_partners(listing: DirectoryListing, dataset: DatasetConfig) -> DirectoryListing:
    """The folder without the control images and masks that the dataset tells by a suffix of their image's name, and
    without what lacks the suffix of its images."""
    suffixes = tuple(filter(None, (*dataset.control_suffix, dataset.mask_suffix)))
    if layers := {*chain.from_iterable(layers_beside(listing, dataset.layers_suffix).values())}:
        images = {stem: names for stem, names in listing.images.items() if stem not in layers}
        listing = replace(listing, images=images)
    if not (suffixes or dataset.image_suffix):
        return listing
    of_stem = {stem: root_of(stem, dataset.image_suffix) for stem in listing.images}
    roots = {stem: root for stem, root in of_stem.items() if root is not None}
    partners = {with_affix(root, suffix) for root in roots.values() for suffix in suffixes}
    controls = [with_affix(root, suffix) for root in roots.values() for suffix in dataset.control_suffix]
    partners.update(chain.from_iterable(listing.numbered.get(stem, ()) for stem in controls))
    return replace(listing, images={stem: listing.images[stem] for stem in roots if stem not in partners})


def _partner_places(dataset: DatasetConfig) -> set[str]:
    """The real paths of the folders of control images, layers and masks."""
    return {real_path(folder) for folder in (*dataset.control_path, dataset.layers_path, dataset.mask_path) if folder}


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
    captions = folder.caption_files()
    by_name = dataset.captions == "names"
    if folder.table is None and findings.read_captions and not by_name and not any(map(any, captions)):
        take_table_beside(folder, findings)
        captions = folder.caption_files()
    caption_ext = dataset.caption_ext if folder.table is None and not by_name else ()
    used, ignored = set(chain.from_iterable(captions)), dict[tuple[str, str], list[str]]()
    for name, written in listing.files.items():
        if written not in used:
            why = _why_ignored(name, listing, caption_ext, dataset, findings)
            ignored.setdefault(why, []).append(written)
    for (reason, remedy), names in ignored.items():
        if remedy:
            findings.not_used(listing, names, reason, remedy, findings.unused)
        else:
            findings.notes.append(f"{listing.folder}: ignored, {reason}: {shorten(names)}")
    by_table = any(row.references for row in (folder.table or {}).values())
    if not (dataset.image_suffix or dataset.control_suffix or by_table) and (pairs := pair_names(listing.images)):
        optional = ", control_optional: true" if pairs.optional else ""
        controls = ", ".join(map(in_yaml, pairs.controls))
        given = f"image_suffix: {in_yaml(pairs.image)}, control_suffix: [{controls}]{optional}"
        alone = [name for stem in pairs.alone for name in listing.images[stem]]
        have = "has" if len(alone) == 1 else "have"
        but = f" ({len(alone):,} {have} no partner: {shorten(alone)})" if alone else ""
        looks = f"its images look like pairs{but}, and each is trained by itself. For pairs give '{given}'"
        findings.notes.append(f"warning: {listing.folder}: {looks}")
        findings.unpaired.append((listing.folder, looks))
    if not (dataset.layers_path or dataset.layers_suffix) and (found := layers_beside(listing, LAYER)):
        named = shorten(name for stems in found.values() for stem in stems for name in listing.images[stem])
        what = "by its name a layer of another, and trained as an image"
        remedy = f"For a model of layers give 'layers_suffix: {LAYER}'"
        findings.notes.append(f"warning: {listing.folder}: some images are each {what}: {named}. {remedy}")
    if subfolders := _subfolders(listing, dataset):
        findings.notes.append(f"{listing.folder}: holds images itself; subfolders ignored: {shorten(subfolders)}")
    return True


def _why_ignored(
    name: str, listing: DirectoryListing, caption_ext: Sequence[str], dataset: DatasetConfig, findings: ScanFindings
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
    tables = tables_in(listing, dataset, [name], findings) if caption_ext else ()
    if any(names_any(table, listing.prefix, names) for table in tables):
        return OTHER_TABLE
    return "not an image", ""


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
        folder.captions = find_captions(listing, folder.caption_files(), findings.mistakes)
        if dataset.captions == "names":
            folder.captions = [caption_of_name(root_of(stem, dataset.image_suffix) or stem) for stem in listing.images]
        elif dataset.caption_from_name:
            names = (stem.replace("_", " ") for stem in listing.images)
            folder.captions = [caption or name for caption, name in zip(folder.captions, names, strict=True)]
    else:
        rows = [folder.table.get(name, TableRow("")) for name in folder.table_names()]
        folder.captions = [row.caption for row in rows]
        for stem, row in zip(listing.images, rows, strict=True):
            if row.references:
                folder.controls[stem] = tuple(named_files(folder, row.references, "as a control image", findings))
            if row.worse:
                folder.worse[stem] = tuple(named_files(folder, row.worse, "as a worse image", findings))
            if row.mask:
                masks = named_files(folder, [row.mask], "as a mask", findings)
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
            if stem in {"control": folder.named, "mask": masked}.get(slot.key, ()):
                continue
            found = partners_of(stem, image, slot, wanted, findings.mistakes)
            if slot.key == "control":
                folder.controls[stem] = (*folder.controls.get(stem, ()), *found)
            elif slot.key == "layers":
                folder.layers[stem] = tuple(found)
            elif found:
                folder.masks[stem] = found[0]
    if dataset.alpha_mask:
        folder.masks = dict(folder.images())


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
    image_affix = dataset.image_suffix
    slots += [Slot("control", suffix, whole, optional, image_affix) for suffix in dataset.control_suffix]
    if dataset.layers_path:
        slots.append(Slot("layers", "", listings(dataset.layers_path, "layers_path"), False))
    elif dataset.layers_suffix:
        slots.append(Slot("layers", dataset.layers_suffix, whole, False))
    if (dataset.mask_path or dataset.mask_suffix) and not dataset.alpha_mask:
        masks = listings(dataset.mask_path, "mask_path") if dataset.mask_path else whole
        of_mask = image_affix if dataset.mask_suffix else ""
        slots.append(Slot("mask", dataset.mask_suffix, masks, dataset.mask_optional, of_mask))
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
            findings.not_used(listing, left, reason, f"Give it the name of its image{several}", findings.unpaired)
        if texts := captions_beside(listing):
            remedy = "Put it beside the image, with its name"
            findings.not_used(listing, texts, f"caption beside a {slot.what}", remedy, findings.unused)
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
        affixes = [slot.affix for slot in folder.slots if slot.affix]
        like = [stem for stem in folder.listing.images for affix in affixes if root_of(stem, affix) is not None]
        if lone := [folder.listing.images[stem][0] for stem in dict.fromkeys(like)]:
            what = f"named like control images or masks, and trained as images: {shorten(lone)}"
            remedy = "Remove them, or add the images that they belong to"
            findings.notes.append(f"warning: {folder.listing.folder}: {count_of(len(lone), 'file')} {what}. {remedy}")
        if folder.dataset.image_suffix:
            known = {
                *chain.from_iterable(folder.listing.images.values()),
                *(each.name for _, each in folder.partners()),
            }
            if others := unpaired(folder.whole, known):
                reason = f"without image_suffix {folder.dataset.image_suffix!r}, and control image of no image"
                remedy = "Give it one of the suffixes, or remove it"
                findings.not_used(folder.whole, others, reason, remedy, findings.unpaired)
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
        repeat(None),
        [tuple(image.path for image in folder.layers.get(stem, ())) for stem in listing.images],
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
        has_default=bool(dataset.default_caption),
    )


def _converted(folder: FoundFolder) -> Iterator[ConvertedImage]:
    """The files of a folder's images, and of what belongs to them, whose colours are not sRGB."""
    worse = chain.from_iterable(folder.worse.get(stem, ()) for stem in folder.listing.images)
    partners = (image for stem, image in folder.partners() if stem in folder.listing.images)
    own = (image for _, image in folder.images())
    for image in chain(own, partners, worse):
        if (facts := image.facts) and facts.colours:
            yield ConvertedImage(image.path, facts.colours, facts.is_hdr)
