"""The first stage of a scan: which folders hold the images of an entry of `datasets`.

These are the folder that the entry names, or its direct subfolders. Where the entry
names a table or a Parquet file with pictures instead, or a folder without images that
contains a table, they are the folders of the images that the table names. `folder`
calls `image_folders`. Errors go to its findings. No image is opened here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain

from toolkit.config.sections.dataset import DatasetConfig
from toolkit.data.pixels.images import IMAGE_SUFFIXES
from toolkit.data.pixels.unread import kind_of_file, other_kind
from toolkit.data.scan.directory import DirectoryListing, join, real_path, split_suffix
from toolkit.data.scan.folder_tables import tables_in, used_rows
from toolkit.data.scan.found import (
    ScanFindings,
    count_of,
    matched_name,
    shorten,
    split_of,
)
from toolkit.data.scan.partners import root_of, with_affix
from toolkit.data.scan.records import FolderTable, ImageFolder
from toolkit.data.scan.repeats import REPEATS
from toolkit.data.scan.tables import line_naming, with_slashes
from toolkit.data.scan.unused_files import captions_elsewhere
from toolkit.files.archives import SUFFIX as ZIP
from toolkit.files.archives import archive_in
from toolkit.files.parquet import MISSING, has_pictures, is_missing, is_parquet
from toolkit.files.parquet import SUFFIX as PARQUET
from toolkit.files.parquet import TABLE as ROWS

LOOKED_INTO = 1000
"""Folders below one without images that are looked into."""


def image_folders(
    dataset: DatasetConfig, findings: ScanFindings
) -> Iterator[ImageFolder]:
    """The image folders of one entry, in the order of their names. An entry that cannot
    be used is a mistake and has none.

    Notes on all folders together are added after the last one.
    """
    files = _parquet_files(dataset, findings)
    if files:
        return _folders_of_parquet(dataset, files, findings)
    table = FolderTable()
    if dataset.captions_file is not None:
        table = _given_table(dataset, dataset.captions_file, findings)
        if not table:
            return iter(())
        if not dataset.folder_path:
            place = os.path.dirname(table.path) or "."
            return _folders_of_table(dataset, table, place, findings)
    top = findings.listing(dataset.folder_path)
    if top is None:
        return iter(())
    if top.images:
        return iter([_own_images(dataset, top, table, findings)])
    return _subfolders_with_images(dataset, top, table, findings)


def subfolders_of(listing: DirectoryListing, dataset: DatasetConfig) -> list[str]:
    """Subfolders except those with the dataset's control images, layers and masks."""
    partners = _partner_places(dataset)
    return [
        name
        for name in listing.subfolders
        if real_path(join(listing.folder, name)) not in partners
    ]


def note_subfolders(folder: ImageFolder, findings: ScanFindings) -> None:
    """Notes the subfolders of a folder of images, which are not used."""
    subfolders = subfolders_of(folder.listing, folder.dataset)
    if subfolders:
        findings.note(
            folder.listing.folder,
            f"holds images itself; subfolders ignored: {shorten(subfolders)}",
        )


def _partner_places(dataset: DatasetConfig) -> set[str]:
    """The real paths of the folders of control images and masks."""
    folders = (*dataset.control_path, dataset.mask_path)
    return {real_path(folder) for folder in folders if folder}


def _given_table(
    dataset: DatasetConfig, file: str, findings: ScanFindings
) -> FolderTable:
    """The table that is `captions_file`; an empty one where it cannot be used, which is a
    mistake."""
    given = findings.table(file, dataset)
    if not given.rows and not given.mistakes:
        what = "has no line. Write one for each image"
        findings.mistake(file, f"{what}, or take 'captions_file' out")
        return FolderTable()
    return FolderTable(file, used_rows(dataset, given, os.path.dirname(file), findings))


# ---------------------------------------------------------------- the folder that an
# entry names


def _own_images(
    dataset: DatasetConfig,
    top: DirectoryListing,
    table: FolderTable,
    findings: ScanFindings,
) -> ImageFolder:
    """The folder of an entry that holds images itself. Subfolders with repeats next to
    them are a mistake: only the loose images would be used."""
    path = dataset.folder_path
    filled = []
    if not matched_name(path, REPEATS):
        named = filter(REPEATS.match, subfolders_of(top, dataset))
        filled = [*_filled(path, named, findings)]
    if filled:
        loose = shorten(chain.from_iterable(top.images.values()))
        findings.mistake(
            path,
            f"holds images itself ({loose}), so those in {shorten(filled)} would not be used. "
            "Move the loose images away, or give each subfolder as a dataset",
        )
    listing = _without_partners(top, dataset)
    if not listing.images:
        example = next(chain.from_iterable(top.images.values()))
        findings.mistake(
            path,
            f"no name of an image in it fits image_suffix {dataset.image_suffix!r}. "
            f"It has {example!r}: write the suffix with its letters",
        )
    return ImageFolder(dataset, listing, whole=top, table=table)


def _filled(
    path: str, names: Iterable[str], findings: ScanFindings
) -> dict[str, DirectoryListing]:
    """The subfolders of these names that hold images."""
    listings = ((name, findings.listing(join(path, name))) for name in names)
    return {name: listing for name, listing in listings if listing and listing.images}


def _without_partners(
    listing: DirectoryListing, dataset: DatasetConfig
) -> DirectoryListing:
    """The folder without the control images, layers and masks that the dataset
    recognises by a suffix, and without images that lack the `image_suffix` of the
    dataset."""
    layers = listing.layers(dataset.layers_suffix).values()
    partners = set(chain.from_iterable(layers))
    suffixes = [*filter(None, (*dataset.control_suffix, dataset.mask_suffix))]
    if not (partners or suffixes or dataset.image_suffix):
        return listing
    # Control images have partners of their own: `a_control_mask.png` is no image.
    roots = {
        stem: root_of(stem, dataset.image_suffix)
        for stem in listing.images
        if stem not in partners
    }
    for root in roots.values():
        if root is None:
            continue
        partners.update(with_affix(root, suffix) for suffix in suffixes)
        for suffix in dataset.control_suffix:
            partners.update(listing.numbered.get(with_affix(root, suffix), ()))
    images = {
        stem: names
        for stem, names in listing.images.items()
        if roots.get(stem) is not None and stem not in partners
    }
    return replace(listing, images=images)


# ---------------------------------------------------------------- the subfolders of the
# folder that an entry names


def _subfolders_with_images(
    dataset: DatasetConfig,
    top: DirectoryListing,
    table: FolderTable,
    findings: ScanFindings,
) -> Iterator[ImageFolder]:
    """The subfolders of an entry that holds no images itself; else the folders of a
    table in it. Subfolders that are not used are noted. No image at all is a
    mistake."""
    path = dataset.folder_path
    names = subfolders_of(top, dataset)
    filled = _filled(path, names, findings)
    for name, listing in filled.items():
        images = _without_partners(listing, dataset)
        yield ImageFolder(dataset, images, whole=listing, subfolder=name, table=table)
    if not (filled or table):
        deeper = [*_folders_of_deeper_table(dataset, top, findings)]
        yield from deeper
        if deeper:
            return
    empty = [name for name in names if name not in filled]
    below = _images_below([join(path, name) for name in empty], dataset, findings)
    if not filled:
        lost = [
            captions_elsewhere(findings.scan_cache.listing(name), dataset, findings)
            for name in below
        ]
        remedies = [_where_images_are(top, below), *dict.fromkeys(filter(None, lost))]
        findings.mistake(
            path, f"holds no images (seen: {top.describe()}). {'. '.join(remedies)}"
        )
    elif below:
        hold = "holds" if len(below) == 1 else "hold"
        findings.warn(
            path,
            f"{shorten(below)} {hold} images that are not used. "
            "Only direct subfolders are looked into: give it as a dataset",
        )
    elif empty:
        findings.note(path, f"subfolders without images ignored: {shorten(empty)}")


def _images_below(
    folders: Sequence[str], dataset: DatasetConfig, findings: ScanFindings
) -> list[str]:
    """The first folders with images on each way down from these, which have none."""
    with_images = list[str]()
    waiting = [*folders]
    seen = _partner_places(dataset)
    for folder in waiting:  # it gets longer meanwhile
        place = real_path(folder)
        if place in seen or len(seen) > LOOKED_INTO:
            continue
        seen.add(place)
        with suppress(OSError):  # nothing of it would be used
            listing = findings.scan_cache.listing(folder)
            if listing.images:
                with_images.append(folder)
            else:
                waiting += [join(folder, name) for name in listing.subfolders]
    return with_images


def _where_images_are(top: DirectoryListing, below: Sequence[str]) -> str:
    """The remedy for a folder without images. below: folders further down that have
    images."""
    if below:
        return _give_folders_below(top, below)
    endings = {split_suffix(name)[1]: name for name in reversed(top.files.values())}
    if ZIP in endings:
        return f"Give 'folder_path: {join(top.folder, endings[ZIP])}'"
    if PARQUET in endings:  # with pictures it would have been unpacked
        table = join(top.folder, endings[PARQUET])
        return f"{endings[PARQUET]!r} has none in its rows. Where they name files, give 'captions_file: {table}'"
    is_several = "dataset_dict.json" in top.files
    if is_several or ".arrow" in endings:  # of `save_to_disk`
        place = os.path.abspath(os.path.expanduser(top.folder))
        of_train = '["train"]' if is_several else ""
        loaded = f"datasets.load_from_disk({json.dumps(place)}){of_train}"
        code = f"import datasets; {loaded}.to_parquet({json.dumps(place + '.parquet')})"
        return f"It is what save_to_disk of 'datasets' wrote. Write it as Parquet: python -c {shlex.quote(code)}"
    for name in top.files.values():
        what, remedy = (
            other_kind(name) if name in top.no_files else kind_of_file(top.path(name))
        )
        if what:
            return f"{name!r} is {what}. {remedy}"
    return f"Supported: {', '.join(sorted(IMAGE_SUFFIXES))}"


def _give_folders_below(top: DirectoryListing, below: Sequence[str]) -> str:
    """The remedy where folders further down have images: give these folders, or their
    parents where their names have repeats. Of splits only the one to train on."""
    splits = {}
    for folder in below:
        if matched_name(folder, REPEATS):
            folder = folder.rpartition("/")[0]
        parts = map(split_of, folder.removeprefix(top.folder).split("/"))
        splits[folder] = next(filter(None, parts), "")
    is_split = "train" in splits.values()
    given = [
        folder
        for folder, split in sorted(splits.items())
        if not is_split or split in ("", "train")
    ]
    do = "does" if len(below) == 1 else "do"
    return f"{shorten(map(repr, below))} {do}: give {shorten(given)}"


# ---------------------------------------------------------------- the images that a
# table names, and no others


def _folders_of_table(
    dataset: DatasetConfig, table: FolderTable, place: str, findings: ScanFindings
) -> Iterator[ImageFolder]:
    """The folders of the images that a table names, with only these images. place: the
    folder that its names begin at."""
    rows = {with_slashes(name, place): row for name, row in table.rows.items()}
    table = replace(table, rows=rows)
    addresses = [name for name in rows if name.startswith(("http:/", "https:/"))]
    if addresses:
        counted = count_of(len(addresses), "address", "addresses")
        findings.mistake(
            table.path,
            f"names {counted}, such as {addresses[0]!r}, and images are files. "
            "Download them, and write the names of the files",
        )
        return
    by_folder: dict[str, set[str]] = {}
    for name in rows:
        by_folder.setdefault(os.path.dirname(name), set()).add(name)
    for subfolder, names in by_folder.items():
        listing = findings.listing(_start_of(subfolder, place))
        if listing is None:
            continue
        whole = ImageFolder(dataset, listing, listing, subfolder or None, table)
        called = dict(zip(listing.images, whole.table_names(), strict=True))
        images = {
            stem: files
            for stem, files in listing.images.items()
            if called[stem] in names
        }
        for name in sorted(names.difference(called.values())):
            line = line_naming(findings.table(table.path, dataset), name)
            findings.mistake(
                listing.path(os.path.basename(name)),
                f"is named in {line} and is not an image",
            )
        yield replace(whole, listing=replace(listing, images=images))


def _start_of(subfolder: str, place: str) -> str:
    """The folder that a table means: from its own place, or from the working directory,
    as musubi-tuner writes it."""
    start = os.path.join(place, subfolder) if subfolder else place
    is_there = os.path.isdir(os.path.expanduser(start)) or archive_in(start)
    return subfolder if not is_there and os.path.isdir(subfolder) else start


def _folders_of_deeper_table(
    dataset: DatasetConfig, top: DirectoryListing, findings: ScanFindings
) -> Iterator[ImageFolder]:
    """The folders of the images that the only table in a folder names, further down
    than its subfolders."""
    naming = [
        table
        for table in tables_in(top, dataset, top.files, findings)
        if any(os.path.isfile(top.path(name)) for name in table.rows)
    ]
    if len(naming) == 1 and dataset.captions != "names":
        (table,) = naming
        findings.note(top.folder, f"the images are those that {table.path} names")
        rows = used_rows(dataset, table, top.folder, findings)
        folder_table = FolderTable(table.path, rows)
        yield from _folders_of_table(dataset, folder_table, top.folder, findings)


# ---------------------------------------------------------------- pictures in Parquet
# files


_PARQUET_DEPTH = 2
"""Levels of folders in which data sets of the hub have Parquet files: `data/`, or a
configuration with its splits."""


def _parquet_files(dataset: DatasetConfig, findings: ScanFindings) -> list[str]:
    """The Parquet files with pictures of a dataset: the file that it names, or the files
    in a folder without images and in its subfolders, as in data sets of the hub."""
    path = dataset.folder_path or str(dataset.captions_file)
    place = os.path.expanduser(path)
    if os.path.isfile(place):
        with_pictures = bool(dataset.folder_path) or has_pictures(place)
        return [path] if is_parquet(place) and with_pictures else []
    if dataset.captions_file:
        return []
    files = list[str]()
    level = [path]
    for depth in range(_PARQUET_DEPTH + 1):
        listings = []
        for folder in level[:LOOKED_INTO]:
            with suppress(OSError):  # it is told where the folder is looked for images
                listings.append(findings.scan_cache.listing(folder))
        if depth < _PARQUET_DEPTH and any(listing.images for listing in listings):
            return []
        for listing in listings:
            for name in listing.files.values():
                if split_suffix(name)[1] == PARQUET and has_pictures(
                    listing.path(name)
                ):
                    files.append(join(listing.folder, name))
        level = [
            join(listing.folder, name)
            for listing in listings
            for name in listing.subfolders
        ]
    return sorted(files)


def _folders_of_parquet(
    dataset: DatasetConfig, files: Sequence[str], findings: ScanFindings
) -> Iterator[ImageFolder]:
    """The folders of the pictures in Parquet files that their rows name as the image.
    The files are unpacked into the cache. Of several those for validation and test are
    left out."""
    if is_missing():
        findings.mistake(dataset.place, MISSING)
        return
    held_out = [
        file for file in files if _split_of_file(file) in ("validation", "test")
    ]
    if len(held_out) == len(files):
        held_out = []
    if held_out:
        what = "left out, as their names keep them from the training"
        counted = count_of(len(held_out), "file")
        findings.warn(dataset.place, f"{counted} {what}: {shorten(held_out)}")
    for file in files:
        if file in held_out:
            continue
        try:
            top = findings.scan_cache.listing(file)
        except OSError as error:
            findings.mistake(file, str(error.strerror or error))
            continue
        table = findings.table(top.path(ROWS), dataset, called=file)
        rows = used_rows(dataset, table, os.path.dirname(table.path), findings)
        folder_table = FolderTable(table.path, rows)
        yield from _folders_of_table(dataset, folder_table, file, findings)


def _split_of_file(path: str) -> str:
    """The split that the name of a Parquet file of the hub, or of its folder, names."""
    folder, name = os.path.split(path)
    return split_of(re.split(r"[-._ ]", name)[0]) or split_of(os.path.basename(folder))
