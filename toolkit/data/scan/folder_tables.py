"""The tables of the images of a folder: which one is for them, and how its rows are brought to their names.

What the rows of a table say is read in `tables`; this is where it meets the files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain

from toolkit.config.sections.dataset import DatasetConfig
from toolkit.data.pixels.images import IMAGE_SUFFIXES
from toolkit.data.scan.columns import in_yaml as column_in_yaml
from toolkit.data.scan.directory import DirectoryListing, ImageFile, join, split_suffix
from toolkit.data.scan.found import LOOKED_INTO, FoundFolder, ScanFindings, count_of, shorten, split_of
from toolkit.data.scan.tables import (
    NO_JSON,
    TABLES,
    Table,
    TableRow,
    image_name,
    line_naming,
    placed,
    with_slashes,
)
from toolkit.errors import Diagnostic
from toolkit.files.archives import archive_in
from toolkit.files.parquet import MISSING, has_pictures, is_missing, is_parquet
from toolkit.files.parquet import SUFFIX as PARQUET
from toolkit.files.parquet import TABLE as ROWS


def taken(dataset: DatasetConfig, table: Table, folder: str, findings: ScanFindings) -> dict[str, TableRow]:
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


def place_table(dataset: DatasetConfig, path: str, folders: Sequence[FoundFolder], findings: ScanFindings) -> None:
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


# ---------------------------------------------------------------- the images that a table names, and no others


def folders_of_table(
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
                line = line_naming(findings.table(path, dataset), name)
                findings.mistake(folder.listing.path(os.path.basename(name)), f"is named in {line} and is not an image")
            yield folder


def folders_of_deeper_table(
    index: int, dataset: DatasetConfig, top: DirectoryListing, findings: ScanFindings
) -> Iterator[FoundFolder]:
    """The folders of the images that the only table in a folder names, further down than its subfolders."""
    tables = tables_in(top, dataset, top.files, findings)
    found = [table for table in tables if any(os.path.isfile(top.path(name)) for name in table.rows)]
    if len(found) == 1 and dataset.captions != "names":
        (table,) = found
        findings.notes.append(f"{top.folder}: the images are those that {table.path} names")
        rows = taken(dataset, table, top.folder, findings)
        yield from folders_of_table(index, dataset, rows, table.path, top.folder, findings)


def parquet_files(dataset: DatasetConfig, findings: ScanFindings) -> list[str]:
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
        for folder in level[:LOOKED_INTO]:
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


def folders_of_parquet(
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
        table = findings.table(top.path(ROWS), dataset, called=file)
        rows = taken(dataset, table, os.path.dirname(table.path), findings)
        yield from folders_of_table(index, dataset, rows, table.path, file, findings)


def _split_of_file(path: str) -> str:
    """What the name of a Parquet file of the hub, or of its folder, says of the use of its rows."""
    folder, name = os.path.split(path)
    return split_of(re.split(r"[-._ ]", name)[0]) or split_of(os.path.basename(folder))


# ---------------------------------------------------------------- which table of a folder is for its images


OTHER_TABLE = "captions of images that have caption files, or another table", "Give one as 'captions_file'"


def take_table_beside(folder: FoundFolder, findings: ScanFindings) -> None:
    """Takes the captions of the only table in the folder that names its images."""
    listing, dataset = folder.listing, folder.dataset
    names = [image_name(files[0]) for files in listing.images.values()]
    if table := _only_table(listing, listing.prefix, names, dataset, findings):
        rows = taken(dataset, table, listing.folder, findings)
        rows, _ = placed(rows, table.path, listing.prefix, names)
        inside = f"{folder.subfolder}/" if folder.subfolder else ""
        folder.table_path = table.path
        folder.table = {inside + name: row for name, row in rows.items()}
        findings.notes.append(f"{listing.folder}: no caption files: captions are read from {table.path}")


def take_table_above(dataset: DatasetConfig, folders: Sequence[FoundFolder], findings: ScanFindings) -> None:
    """Takes the captions of the only table above the subfolders that names their images, for those that have neither
    caption files nor a table of their own."""
    below = [folder for folder in folders if folder.subfolder]
    if not (below and dataset.folder_path and findings.read_captions) or dataset.captions_file:
        return
    if dataset.captions == "names":
        return
    if (top := findings.listing(dataset.folder_path)) is None:
        return
    bare = [folder for folder in below if folder.table is None and not any(map(any, folder.caption_files()))]
    names = [*chain.from_iterable(folder.image_names() for folder in (bare or below))]
    table = _only_table(top, dataset.folder_path, names, dataset, findings) if bare else None
    if table is None:
        used = {folder.table_path for folder in folders}
        tables = [each for each in tables_in(top, dataset, top.files, findings) if each.path not in used]
        tables = [each for each in tables if names_any(each, dataset.folder_path, names)]
        if tables:
            findings.not_used(top, [os.path.basename(each.path) for each in tables], *OTHER_TABLE, findings.unused)
        return
    rows = taken(dataset, table, top.folder, findings)
    for folder in bare:
        folder.table, folder.table_path = rows, table.path
    findings.notes.append(f"{top.folder}: no caption files: captions are read from {table.path}")


def _only_table(
    listing: DirectoryListing, folder: str, names: Sequence[str], dataset: DatasetConfig, findings: ScanFindings
) -> Table | None:
    """The only table in a folder that names its images, none of which has a caption file; else None. One that is meant
    for images, and names none of these or cannot be read, is a mistake: their captions would be lost.

    folder: that the names begin at.
    """
    tables = [*tables_in(listing, dataset, listing.files, findings)]
    found = [table for table in tables if names_any(table, folder, names)]
    if len(found) == 1:
        return found[0]
    if not found:
        for table in tables:
            if _is_meant(table, names):
                findings.mistakes += map(_found, table.mistakes or [_of_others(table, folder, names)])
    return None


def tables_in(
    listing: DirectoryListing, dataset: DatasetConfig, names: Iterable[str], findings: ScanFindings
) -> Iterator[Table]:
    """The tables of captions among the files of a folder, read. names: as in `listing.files`."""
    for name in names:
        stem, suffix = split_suffix(name)
        if suffix in TABLES and stem not in listing.images and listing.files[name] not in listing.no_files:
            yield findings.table(listing.path(listing.files[name]), dataset)


def names_any(table: Table, folder: str, names: Sequence[str]) -> bool:
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


def _found(mistake: Diagnostic) -> Diagnostic:
    """The mistake of a table that was found, with what to do where it is none of captions."""
    why = "It is read because no image has a caption file; if it is not for them, move it away"
    return replace(mistake, message=f"{mistake.message}. ({why}.)")


def _of_others(table: Table, folder: str, names: Sequence[str]) -> Diagnostic:
    what = f"none of its {count_of(len(table.rows), 'line')} names an image of the folder, and no image has a caption"
    return Diagnostic((table.path,), f"{what}. {_unlike(list(table.rows), names)}")


# ---------------------------------------------------------------- files that a row names


def named_files(folder: FoundFolder, paths: Iterable[str], named: str, findings: ScanFindings) -> Iterator[ImageFile]:
    """The images that a row of the table names: in the folder of the images, else from that of the table."""
    for path in paths:
        places = _places(path, (folder.dataset.folder_path, os.path.dirname(folder.table_path or ""), "."))
        found = next((place for place in places if os.path.isfile(place)), places[0])
        listing = findings.listing(os.path.dirname(found))
        if listing and os.path.basename(found) in listing.versions:
            yield ImageFile(listing, os.path.basename(found))
        elif listing:
            place = line_naming(findings.table(str(folder.table_path), folder.dataset), path)
            findings.mistake(found, f"is named in {place} {named} and is not there")
