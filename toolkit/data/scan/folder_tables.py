"""The second stage of a scan: the table of each folder's images, and its rows by the
names of the images.

`tables` reads the rows of a table; this module connects them with the files. A folder
without a table may get the one next to its images or above it (`with_table_beside`,
`with_tables_above`). Then `with_placed_rows` gives the rows the names of the images.
`folder` calls these three; `image_folders` and `matching` ask for tables and the files
that they name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from toolkit.config.sections.dataset import DatasetConfig
from toolkit.data.pixels.images import IMAGE_SUFFIXES
from toolkit.data.scan.captions import HALF, SENTENCES
from toolkit.data.scan.columns import ignoring, to_fill_in
from toolkit.data.scan.directory import DirectoryListing, ImageFile, split_suffix
from toolkit.data.scan.found import ScanFindings, count_of, shorten
from toolkit.data.scan.records import FolderTable, ImageFolder
from toolkit.data.scan.tables import (
    NO_JSON,
    TABLES,
    Table,
    TableRow,
    image_name,
    line_naming,
    placed,
)
from toolkit.errors import Diagnostic
from toolkit.files.parquet import SUFFIX as PARQUET

OTHER_TABLE = (
    "captions of images that have caption files, or another table",
    "Give one as 'captions_file'",
)
"""Why a table is not used, and what to do."""

PLAIN = ".txt"
"""The ending of a table without a header, which other texts have too."""

NO_CAPTIONS = frozenset({"lint_ignore.txt", "readme.txt", "license.txt", "classes.txt"})
"""Texts beside images that are not captions, in lower case."""

_LOOKED_THROUGH = 64 << 20
"""Bytes of a table that cannot be read in which names of images are looked for."""

_LOOKED_FOR = 100
"""So many names of images are looked for in a table that cannot be read."""

_SAYS_CAPTIONS = re.compile(rb'"\w*(?:caption|prompt|instruction|text|conversation)s?"')
"""In the JSON of a table; others are of other programs."""


# ---------------------------------------------------------------- which table is for
# the images of a folder


def with_table_beside(folder: ImageFolder, findings: ScanFindings) -> ImageFolder:
    """The folder with the only table in it that names its images, where it has neither
    a table nor caption files."""
    listing = folder.listing
    dataset = folder.dataset
    if folder.table or not _reads_captions(dataset, findings):
        return folder
    if folder.has_caption_files:
        return folder
    names = [image_name(files[0]) for files in listing.images.values()]
    table = _only_table(listing, listing.prefix, names, dataset, findings)
    if table is None:
        return folder
    rows = placed(table.rows, table.path, listing.prefix, names)
    inside = f"{folder.subfolder}/" if folder.subfolder else ""
    of_dataset = {inside + name: row for name, row in rows.items()}
    return replace(folder, table=FolderTable(table.path, of_dataset))


def _reads_captions(dataset: DatasetConfig, findings: ScanFindings) -> bool:
    return findings.read_captions and dataset.captions != "names"


def with_tables_above(
    dataset: DatasetConfig, folders: Sequence[ImageFolder], findings: ScanFindings
) -> Sequence[ImageFolder]:
    """The folders, where subfolders with neither caption files nor a table have got the
    table above them, if it is the only one that names their images."""
    below = [folder for folder in folders if folder.subfolder]
    if not below or not dataset.folder_path or dataset.captions_file:
        return folders
    top = findings.listing(dataset.folder_path)
    if top is None or not _reads_captions(dataset, findings):
        return folders
    bare = [
        folder for folder in below if not (folder.table or folder.has_caption_files)
    ]
    names = [name for folder in bare or below for name in folder.image_names()]
    table = None
    if bare:
        table = _only_table(top, dataset.folder_path, names, dataset, findings)
    if table:
        shared = FolderTable(table.path, table.rows)
        return [
            replace(folder, table=shared) if folder in bare else folder
            for folder in folders
        ]
    used = {folder.table.path for folder in folders if folder.table}
    others = [
        os.path.basename(table.path)
        for table in tables_in(top, dataset, top.files, findings)
        if table.path not in used and names_any(table, dataset.folder_path, names)
    ]
    if others:
        findings.not_used(top, others, *OTHER_TABLE, findings.unused)
    return folders


def _only_table(
    listing: DirectoryListing,
    folder: str,
    names: Sequence[str],
    dataset: DatasetConfig,
    findings: ScanFindings,
) -> Table | None:
    """The only table in a folder that names its images, none of which has a caption
    file; else None. That it is used is noted. A table that is meant for images, but
    names none of these or cannot be read, is a mistake: the captions would be lost.

    folder: that the names begin at.
    """
    tables = [*tables_in(listing, dataset, listing.files, findings)]
    naming = [table for table in tables if names_any(table, folder, names)]
    if len(naming) == 1:
        (table,) = naming
        used_rows(dataset, table, listing.folder, findings)
        findings.note(
            listing.folder, f"no caption files: captions are read from {table.path}"
        )
        return table
    if naming:
        return None
    why = "It is read because no image has a caption file; if it is not for them, move it away"
    for table in tables:
        if _is_meant(table, names):
            for mistake in table.mistakes or [_of_others(table, names)]:
                message = f"{mistake.message}. ({why}.)"
                findings.mistakes.append(replace(mistake, message=message))
    return None


def tables_in(
    listing: DirectoryListing,
    dataset: DatasetConfig,
    names: Iterable[str],
    findings: ScanFindings,
) -> Iterator[Table]:
    """The tables of captions among the files of a folder, read. names: as in
    `listing.files`."""
    for name in names:
        stem, suffix = split_suffix(name)
        if (
            (suffix in TABLES or (suffix == PLAIN and name.lower() not in NO_CAPTIONS))
            and stem not in listing.images
            and listing.files[name] not in listing.no_files
        ):
            yield findings.table(listing.path(listing.files[name]), dataset)


def names_any(table: Table, folder: str, names: Sequence[str]) -> bool:
    """Whether a table names an image of a folder. names: of the images, from that
    folder."""
    rows = placed(table.rows, table.path, folder, names)
    return any(name in rows or split_suffix(name)[0] in rows for name in names)


def _is_meant(table: Table, names: Sequence[str]) -> bool:
    """Whether a table that names no image of its folder is one of images: by its rows,
    or, where they cannot be read, by a name of an image in the file. names: of the
    images."""
    if any(
        split_suffix(name)[1] in IMAGE_SUFFIXES and (row.caption or row.references)
        for name, row in table.rows.items()
    ):
        return True
    if table.path.lower().endswith(PLAIN):  # any text may mention an image
        return False
    messages = [mistake.message for mistake in table.mistakes]
    suffix = split_suffix(table.path)[1]
    is_of_images = table.is_of_images or any(
        words in message for message in messages for words in (HALF, SENTENCES)
    )
    if suffix == PARQUET:  # its text is packed; `datasets` names such a table so
        is_named = os.path.basename(table.path) == "metadata.parquet"
        return is_of_images or (is_named and bool(messages))
    raw = b""
    with suppress(OSError), open(table.path, "rb") as file:
        raw = file.read(_LOOKED_THROUGH)
    mentioned = sum(
        any(name.encode(encoding) in raw for encoding in ("utf-8", "utf-16-le"))
        for name in map(os.path.basename, names[:_LOOKED_FOR])
    )
    # objects of other programs mention images too
    if suffix == ".json" and not any(NO_JSON in message for message in messages):
        is_table = is_of_images or _SAYS_CAPTIONS.search(raw)
        return mentioned >= min(2, len(names)) and bool(is_table)
    return bool(mentioned)


def _of_others(table: Table, names: Sequence[str]) -> Diagnostic:
    """The mistake of a table whose images are not in the folder. names: of the images in
    the folder."""
    lines = count_of(len(table.rows), "line")
    return Diagnostic(
        (table.path,),
        f"none of its {lines} names an image of the folder, and no image has a caption. "
        f"{_unlike(list(table.rows), names)}",
    )


# ---------------------------------------------------------------- what becomes of a
# table that is used


def used_rows(
    dataset: DatasetConfig, table: Table, folder: str, findings: ScanFindings
) -> dict[str, TableRow]:
    """The rows of a table that is used; its mistakes, and the columns that are not
    used, are noted. folder: that the table lies in, as the user wrote it."""
    findings.mistakes.extend(table.mistakes)
    if table.columns.is_of_pairs:
        findings.of_pairs.add(table.path)
    bases = dict.fromkeys(
        (dataset.folder_path, folder, os.path.dirname(table.path), ".")
    )
    of_files = table.unused_files(lambda path: bool(_place_of(path, bases)))
    if of_files:  # they would not be trained
        lacks = [] if dataset.columns.image else ["image"]
        says = to_fill_in(dataset.columns, of_files, lacks)
        ignore = ignoring(of_files, dataset.columns)
        findings.mistake(
            table.called,
            f"its columns of files that are not used: {', '.join(of_files)}. {says}, or give {ignore} "
            "where they are not meant",
        )
    others = [column for column in table.unused if column not in of_files]
    if others:
        named = shorten(column or "one without a title" for column in others)
        what = f"columns that are not used: {named}"
        findings.note(table.called, what)
        findings.unused.append(
            (
                table.called,
                f"{what}. Say what they are with 'columns', or {ignoring(others, dataset.columns)}",
            )
        )
    return table.rows


def _places(path: str, bases: Iterable[str]) -> list[str]:
    """Where a file that a table names may be: relative to each of these folders, also
    with `\\` in place of `/`."""
    if os.path.isabs(path):
        return [path]
    spellings = dict.fromkeys((path, path.replace("\\", "/")))
    return [
        os.path.expanduser(os.path.join(base or ".", spelling))
        for base in bases
        for spelling in spellings
    ]


def _place_of(path: str, bases: Iterable[str]) -> str:
    """Where a file that a table names is; empty for one that does not exist."""
    return next(filter(os.path.isfile, _places(path, bases)), "")


# ---------------------------------------------------------------- the rows by the names
# of the images


def with_placed_rows(
    dataset: DatasetConfig, folders: Sequence[ImageFolder], findings: ScanFindings
) -> list[ImageFolder]:
    """The folders with the rows of their tables by the names of their images, each
    table for all its folders at once. Images and rows without each other are noted."""
    of_table: dict[str, list[ImageFolder]] = {}
    for folder in folders:
        if folder.rows and dataset.folder_path:
            of_table.setdefault(folder.table.path, []).append(folder)
    after: dict[ImageFolder, ImageFolder] = {}
    for path, before in of_table.items():
        with_table, partners = _without_partners(dataset, path, before)
        names = shorten(partners)
        if partners and path in findings.of_pairs:
            findings.note(
                path,
                f"{count_of(len(partners), 'image')} not trained, as control images or masks of others: {names}",
            )
        elif partners:
            with_table = before
            findings.warn(
                path,
                f"names {count_of(len(partners), 'image')} as control images that are trained as images too: "
                f"{names}. To leave them out, name that column: 'columns: {{control: NAME}}'",
            )
        images = [name for folder in with_table for name in folder.image_names()]
        rows = placed(before[0].rows, path, dataset.folder_path, images)
        table = FolderTable(path, rows)
        with_table = [replace(folder, table=table) for folder in with_table]
        _note_unnamed(dataset, path, with_table, findings)
        after.update(zip(before, with_table, strict=True))
    return [after.get(folder, folder) for folder in folders]


def _note_unnamed(
    dataset: DatasetConfig,
    path: str,
    folders: Sequence[ImageFolder],
    findings: ScanFindings,
) -> None:
    """Notes images without a row and rows without an image; a table that names none of
    the images is a mistake."""
    rows = folders[0].rows
    names = {name: None for folder in folders for name in folder.table_names()}
    unused = [name for name in rows if name not in names]
    if len(unused) == len(rows):
        findings.mistake(
            path,
            f"none of its {count_of(len(rows), 'line')} names an image of {dataset.place}. "
            f"{_unlike(unused, list(names))}",
        )
        return
    unnamed = [name for name in names if name not in rows]
    if unnamed:
        findings.note(
            dataset.place,
            f"{len(unnamed)} of {len(names)} images have no line in {path}: {shorten(unnamed)}",
        )
    if unused:
        findings.note(
            path,
            f"{len(unused)} of {len(rows)} lines name no image of {dataset.place}: {shorten(unused)}",
        )


def _without_partners(
    dataset: DatasetConfig, path: str, folders: Sequence[ImageFolder]
) -> tuple[Sequence[ImageFolder], list[str]]:
    """The folders without images that have no row and that their table names as control
    images or masks of others, and these. path: of the table."""
    bases = (dataset.folder_path, os.path.dirname(path), ".")
    rows = folders[0].rows
    named = (name for row in rows.values() for name in (*row.references, row.mask))
    places = (_place_of(name, bases) for name in named if name)
    partners = {os.path.realpath(place) for place in places if place}
    less = []
    left_out = []
    for folder in folders:
        images = {}
        for (stem, files), name in zip(
            folder.listing.images.items(), folder.table_names(), strict=True
        ):
            place = folder.listing.path(files[0])
            if name in rows or os.path.realpath(place) not in partners:
                images[stem] = files
            else:
                left_out.append(name)
        less.append(replace(folder, listing=replace(folder.listing, images=images)))
    return less, left_out


def _unlike(written: Sequence[str], images: Sequence[str]) -> str:
    """How the names of a table differ from those of the images, by the first two."""
    image = next(iter(images), "")
    return f"It has {written[0]!r}, the folder {image!r}: write paths from that folder"


# ---------------------------------------------------------------- files that a row
# names


def named_files(
    folder: ImageFolder, paths: Iterable[str], role: str, findings: ScanFindings
) -> list[ImageFile]:
    """The images that a row of the folder's table names: in the folder of the images,
    else relative to the folder of the table. A file that does not exist is a mistake.
    role: of these images, for the message."""
    bases = (folder.dataset.folder_path, os.path.dirname(folder.table.path), ".")
    images = []
    for path in paths:
        place = _place_of(path, bases) or _places(path, bases)[0]
        listing = findings.listing(os.path.dirname(place))
        if listing is None:
            continue
        name = os.path.basename(place)
        if name in listing.versions:
            images.append(ImageFile(listing, name))
        else:
            line = line_naming(findings.table(folder.table.path, folder.dataset), path)
            findings.mistake(place, f"is named in {line} {role} and is not there")
    return images
