"""Tables of captions: files with a row for each image.

`read_table` reads a table that the job gives or that is in the folder of the images. It
turns the lines of the file into rows of named values, asks `columns` for the meaning of
each column, and reports each line that cannot be used as a mistake.
`ScanFindings.table` calls it once for each file. `placed` finds the images of the rows
by their names, for `folder_tables`. No image is opened here.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from posixpath import normpath
from types import MappingProxyType
from typing import Any, NamedTuple
from unicodedata import normalize

from toolkit.config.reading.findings import is_absolute
from toolkit.config.reading.yaml_reader import moved_path
from toolkit.config.sections.dataset import ColumnsConfig
from toolkit.data.pixels.images import IMAGE_SUFFIXES
from toolkit.data.scan.captions import LIST, CaptionError, listed, read_text
from toolkit.data.scan.columns import (
    UNDECIDED,
    Columns,
    Unfit,
    columns_of,
    first_of,
    in_yaml,
    labelled,
    names_of,
    texts_in,
    unknown,
)
from toolkit.data.scan.directory import real_path, split_suffix
from toolkit.errors import Diagnostic
from toolkit.files.parquet import SUFFIX, ParquetError, is_parquet, table_rows

TEXT_TABLES = (".tsv", ".csv", ".jsonl", ".json")
TABLES = (*TEXT_TABLES, SUFFIX)
"""Endings of files with the captions of many images."""

NOTHING_MOVED: Mapping[str, str] = MappingProxyType({})
"""The folders that tables name are where the tables say."""

NO_COLUMNS = ColumnsConfig()
"""A job that does not give any column."""

_SHOWN = 40
"""Characters of a line that a message shows."""

_ROWS_LOOKED_AT = 20
"""Lines of a `.csv` file, the header included, that tell what its columns are."""

_DELIMITERS = ",;\t|"
"""Delimiters of a `.csv` file. Spreadsheets write the second where numbers have a
decimal comma."""


class TableRow(NamedTuple):
    """The row of one image in a table of captions.

    >>> row = TableRow("a red cat", references=("before/cat.png",))
    >>> row.caption, row.weight
    ('a red cat', 1.0)
    """

    caption: str
    """'' for none."""

    references: tuple[str, ...] = ()
    """Paths of its control images as they are written, relative to the folder of the
    images or of the table."""

    worse: tuple[str, ...] = ()
    """Paths of the images that are liked less, written in the same way."""

    mask: str = ""
    """Path of its mask, written in the same way; '' for none."""

    weight: float = 1.0
    """Factor on its loss."""


class TableLine(NamedTuple):
    """A line of a table that can be used.

    >>> TableLine(2, "cat.png", TableRow("a red cat")).row.caption
    'a red cat'
    """

    number: int
    name: str
    """The name of its image as it is written."""

    row: TableRow


@dataclass(frozen=True)
class Table:
    """A table of captions that was read.

    Example::

        table = read_table("photos/metadata.csv")
        table.rows["cat.png"].caption
    """

    path: str
    called: str
    """As messages name it."""

    rows: dict[str, TableRow]
    """By `image_name`."""

    lines: list[TableLine]
    mistakes: list[Diagnostic]
    """Errors of the file and of its lines."""

    is_of_pairs: bool
    """As `Columns.is_of_pairs`."""

    undecided: int
    """Lines that are skipped, because neither of two images is better."""

    unused: Mapping[str, list[tuple[str, str]]]
    """Columns that are not used -> their values: each the name of the image as it is
    written, and a text."""

    def unused_files(self, is_file: Callable[[str], bool]) -> list[str]:
        """The columns that are not used and whose values are all existing files. A
        column that repeats the name of the image does not count."""
        columns = []
        for column, values in self.unused.items():
            others = [
                value for name, value in values if image_name(value) != image_name(name)
            ]
            if others and all(map(is_file, others)):
                columns.append(column)
        return columns


class _Line(NamedTuple):
    """One row of the file."""

    number: int
    """The number of its line; in `.json`, of its entry."""

    row: Mapping[Any, Any]
    fault: str = ""
    """Why the line cannot be used; empty where it can."""


def read_table(
    path: str,
    moved: Mapping[str, str] = NOTHING_MOVED,
    given: ColumnsConfig = NO_COLUMNS,
    called: str = "",
    several: bool = False,
) -> Table:
    """The rows of a table, by name. moved: `DatasetConfig.path_map`. given:
    `DatasetConfig.columns`. called: the file that messages name, where the table is a
    part of another file. several: whether lines that differ in the caption only are
    several captions of one image.

    `.csv` has a header, `.parquet` columns, `.jsonl` an object per line, `.json` is a
    list of such objects, or maps names to them or to captions. Any other file has lines
    `<file name><tab><caption>`, where later tabs are of the caption, or a header with
    tabs. Names are paths from the folder of the images, as of `image_name`. Blank lines
    are skipped. Mistakes are named as file:line, of `.json` as file:entry.
    """
    called = called or path
    read = _read(path, moved, given)
    rows, repeated = _by_image(read.lines, path, several)
    faults = sorted([*read.faults, *repeated], key=lambda fault: fault.number)
    return Table(
        path,
        called,
        rows,
        read.lines,
        mistakes=[_mistake(called, fault) for fault in faults],
        is_of_pairs=read.is_of_pairs,
        undecided=read.undecided,
        unused=read.unused,
    )


class _Fault(NamedTuple):
    """A line that cannot be used."""

    number: int
    """0: the whole file."""

    reason: str


def _mistake(called: str, fault: _Fault) -> Diagnostic:
    place = f"{called}:{fault.number}" if fault.number else called
    return Diagnostic((place,), fault.reason)


def _by_image(
    lines: Iterable[TableLine], path: str, several: bool
) -> tuple[dict[str, TableRow], list[_Fault]]:
    """The rows by `image_name`. Rows of one image are joined; lines that cannot be
    joined are faults. Arguments as of `read_table`."""
    rows: dict[str, TableRow] = {}
    first: dict[str, int] = {}
    faults = []
    is_there = lru_cache(os.path.isdir)  # one folder has many images
    for number, written, row in lines:
        if os.path.isabs(written) and is_there(os.path.dirname(written)):
            written = os.path.relpath(written, os.path.dirname(os.path.abspath(path)))
        name = image_name(written)
        if name not in first:
            first[name] = number
            rows[name] = row
            continue
        joined = _joined(rows[name], row, several)
        if joined is not None:
            rows[name] = joined
            continue
        remedy = "Remove one of them"
        if _differ_in_caption_alone(rows[name], row):
            remedy = f"{remedy}, or give 'captions: lines', which draws one at each use"
        faults.append(
            _Fault(number, f"{name!r} has a caption in line {first[name]}. {remedy}")
        )
    return rows, faults


def _joined(known: TableRow, row: TableRow, several: bool) -> TableRow | None:
    """Two rows of one image as one: with the worse images of both, or, with `several`,
    both captions. None: the rows contradict each other."""
    if known.worse and row.worse and known[:2] == row[:2]:
        return known._replace(worse=tuple(dict.fromkeys(known.worse + row.worse)))
    if several and _differ_in_caption_alone(known, row):
        captions = [caption for caption in (known.caption, row.caption) if caption]
        return known._replace(caption=LIST.join(captions))
    return None


def _differ_in_caption_alone(known: TableRow, row: TableRow) -> bool:
    return row.caption != known.caption and row._replace(caption=known.caption) == known


class _Read(NamedTuple):
    """The lines of a file, before they are joined by image."""

    lines: list[TableLine]
    faults: list[_Fault]
    is_of_pairs: bool = False
    undecided: int = 0
    unused: Mapping[str, list[tuple[str, str]]] = MappingProxyType({})


def _read(path: str, moved: Mapping[str, str], given: ColumnsConfig) -> _Read:
    """The usable lines of a file, and the faults of the others. Arguments as of
    `read_table`."""
    try:
        lines = [*_lines(path, given)]
        usable = [line.row for line in lines if not line.fault]
        columns = _columns(usable, given)
    except CaptionError as error:
        return _Read([], [_Fault(0, error.reason)])
    except Unfit as error:
        return _Read([], [_Fault(0, str(error))])
    used = _used(columns)
    others = [
        key
        for key in dict.fromkeys(chain.from_iterable(usable))
        if isinstance(key, str) and key not in used
    ]
    unused: dict[str, list[tuple[str, str]]] = {key: [] for key in others}
    read = []
    faults = []
    undecided = 0
    chosen = set[str | None]()
    for number, row, fault in lines:
        if fault:
            faults.append(_Fault(number, fault))
            continue
        try:
            name = _name(row, columns)
            if name is None:
                undecided += 1
                continue
            of_image = _row_of(row, columns)
        except Unfit as error:
            faults.append(_Fault(number, str(error)))
            continue
        chosen.update(first_of(row, keys) for keys in _alternatives(columns))
        for key in others:
            for value in texts_in(row.get(key)):
                unused[key].append((name, moved_path(value, moved)))
        read.append(
            TableLine(number, moved_path(name, moved), _moved_row(of_image, moved))
        )
    unused = {key: values for key, values in unused.items() if key not in chosen}
    return _Read(read, faults, columns.is_of_pairs, undecided, unused)


def _columns(rows: Sequence[Mapping[Any, Any]], given: ColumnsConfig) -> Columns:
    """The columns of a table that names images. Raises Unfit where no column does."""
    columns = columns_of(rows, given)
    names_images = columns.image or columns.labelled
    if rows and not names_images and not all(UNDECIDED in row for row in rows):
        raise Unfit(unknown(rows))
    return columns


def _alternatives(columns: Columns) -> list[tuple[str, ...]]:
    """The columns of each role that has several. A row uses the first that it has."""
    roles = (columns.image, columns.prompt, columns.worse)
    return [keys for keys in roles if len(keys) > 1]


def _moved_row(row: TableRow, moved: Mapping[str, str]) -> TableRow:
    """The row with the present paths of its files. moved: `DatasetConfig.path_map`."""
    return row._replace(
        references=tuple(moved_path(path, moved) for path in row.references),
        worse=tuple(moved_path(path, moved) for path in row.worse),
        mask=moved_path(row.mask, moved) if row.mask else "",
    )


def _used(columns: Columns) -> set[str]:
    """The columns that are read in every row that has them. Where a role has several
    columns, only the first that a row has is read, so those are left out."""
    all_of = (
        columns.tags,
        columns.control,
        columns.mask,
        columns.weight,
        columns.ignore,
        columns.labelled,
    )
    only = [
        keys
        for keys in (columns.image, columns.prompt, columns.worse)
        if len(keys) == 1
    ]
    return {*chain.from_iterable((*all_of, *only)), UNDECIDED}


def _name(row: Mapping[Any, Any], columns: Columns) -> str | None:
    """The name of the image of a row; None where neither of two is better. Raises Unfit
    without one."""
    if columns.labelled:
        pair = labelled(row, columns)
        return pair[0].strip() if pair else None
    key = first_of(row, columns.image)
    if key is None and UNDECIDED in row:
        return None
    name = row.get(key)
    if isinstance(name, str) and name.strip():
        return name.strip()
    if isinstance(name, list):
        raise Unfit(f"names {len(name)} images in {key!r}. Write a row for each image")
    raise Unfit(_NO_NAME)


NO_JSON = "is not valid JSON"
"""How the message for a file or line begins that is not valid JSON."""

_NO_NAME = "has no 'file_name' and 'caption' of text. Give both, or remove the line"


def _row_of(row: Mapping[Any, Any], columns: Columns) -> TableRow:
    """The values of a row. Raises Unfit where they are not text."""
    weight = 1.0
    worse = _worse(row, columns)
    mask = next(iter(_paths(columns.mask, row)), "")
    if columns.weight:
        weight = _weight(row.get(columns.weight[0]))
    return TableRow(
        _caption(row, columns), _paths(columns.control, row), worse, mask, weight
    )


def _worse(row: Mapping[Any, Any], columns: Columns) -> tuple[str, ...]:
    """The images of a row that are liked less: by its label, or by its column."""
    pair = labelled(row, columns) if columns.labelled else None
    if pair:
        return (pair[1].strip(),)
    key = first_of(row, columns.worse)
    return _paths((key,), row) if key else ()


def _caption(row: Mapping[Any, Any], columns: Columns) -> str:
    """The caption of a row; kohya's tags follow another caption after a comma."""
    key = first_of(row, columns.prompt)
    tags_key = first_of(row, columns.tags)
    tags = row.get(tags_key)
    if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags):
        tags = ", ".join(tags)
    caption = listed(row.get(key))
    if key is not None and key == tags_key:
        caption = tags
    if not isinstance(caption, str | None):
        raise Unfit(_NO_NAME)
    if key and key != tags_key and isinstance(tags, str):
        texts = (caption or "").split(LIST)
        caption = LIST.join(_with_tags(text, tags) for text in texts)
    return (caption or "").strip()


def _with_tags(caption: str, tags: str) -> str:
    parts = (caption.strip(), tags.strip())
    return ", ".join(part for part in parts if part)


def _weight(value: Any) -> float:
    """A factor on the loss; 1 for none."""
    if value is None or value == "":
        return 1.0
    try:
        weight = float(value)
    except (TypeError, ValueError, OverflowError):
        weight = -1.0
    if not (math.isfinite(weight) and 0 <= weight <= 1e6):
        raise Unfit(f"has the weight {value!r}. Write a number from 0 to 1000000")
    return weight


def _paths(keys: Sequence[Any], row: Mapping[Any, Any]) -> tuple[str, ...]:
    """The paths in these columns of a row, each with one or a list."""
    if not keys:
        return ()
    values = list[Any]()
    for key in keys:
        value = row.get(key)
        values += value if isinstance(value, list) else [value]
    paths = [
        value.strip() for value in values if isinstance(value, str) and value.strip()
    ]
    return tuple(paths)


# ---------------------------------------------------------------- forms of files


def _lines(path: str, given: ColumnsConfig) -> Iterator[_Line]:
    """The rows of a file, by its ending. Raises CaptionError for one that cannot be
    read, Unfit for one whose form or header is not known."""
    file = os.path.expanduser(path)
    suffix = split_suffix(path)[1]
    if suffix == SUFFIX or is_parquet(file):
        return _parquet_lines(file)
    text = read_text(file, utf16=True)
    if suffix == ".jsonl":
        return _json_lines(text)
    if suffix == ".json":
        return _json_entries(text)
    if suffix == ".csv" or _delimiter(text, "\t", given):
        return _with_header(text, _DELIMITERS if suffix == ".csv" else "\t", given)
    return _tab_lines(text)


def _tab_lines(text: str) -> Iterator[_Line]:
    name = names_of("image")[0]
    caption = names_of("prompt")[0]
    for number, line in enumerate(text.split("\n"), 1):
        written, tab, text_of = line.partition("\t")
        if tab and written.strip():
            yield _Line(number, {name: written.strip(), caption: text_of.strip()})
        elif line.strip():
            what = "no name before the tab" if tab else "no tab"
            reason = f"{line.strip()[:_SHOWN]!r}: {what}. Write the name of the image, a tab, its caption"
            yield _Line(number, {}, reason)


def _with_header(text: str, delimiters: str, given: ColumnsConfig) -> Iterator[_Line]:
    """The rows of a file with a header. Spreadsheets may write a first line `sep=;`."""
    before, _, rest = text.partition("\n")
    skipped = 0
    if before.strip().lower().startswith("sep=") and len(before.strip()) == 5:
        skipped = 1
        text = rest
        delimiters = before.strip()[4]
    delimiter = _delimiter(text, delimiters, given)
    if not delimiter:
        if text.strip():
            yield _Line(1 + skipped, {}, _no_header(text, delimiters, given))
        return
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    try:
        for row in reader:
            number = reader.line_num + skipped
            more = [value for value in row.pop(None, ()) if value.strip()]
            if more:
                what = f"has more values than the header: {delimiter.join(more)[:_SHOWN]!r}"
                yield _Line(
                    number,
                    {},
                    f"{what}. Put a caption that has {delimiter!r} in it into quotation marks",
                )
            elif any(map(_is_filled, row.values())):
                yield _Line(number, row)
    except csv.Error as error:
        yield _Line(
            reader.line_num + skipped,
            {},
            f"cannot be read as CSV: {error}. Fix the line",
        )


def _is_filled(value: object) -> bool:
    """Whether a value of a `.csv` file is a text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def _header(text: str, delimiter: str) -> list[str]:
    """The values of the first line that is not blank."""
    try:
        for row in csv.reader(io.StringIO(text), delimiter=delimiter):
            if row:
                return row
    except csv.Error:
        pass  # with another delimiter it may be a table; the reader reports what is not
    return []


def _delimiter(text: str, delimiters: str, given: ColumnsConfig) -> str:
    """The delimiter by which the first line is a header of known or given columns;
    empty for none."""
    for delimiter in delimiters:
        header = _header(text, delimiter)
        # Names with several meanings are decided by the values of the first rows.
        rows = [
            dict(zip(header, row, strict=False)) for row in _some_rows(text, delimiter)
        ]
        try:
            columns = columns_of(rows or [dict.fromkeys(header)], given)
        except Unfit:
            continue
        if columns.is_table:
            return delimiter
    return ""


def _some_rows(text: str, delimiter: str) -> list[list[str]]:
    """The first rows below the header, without blank lines."""
    try:
        reader = csv.reader(io.StringIO(text), delimiter=delimiter)
        return [*islice(filter(None, reader), 1, _ROWS_LOOKED_AT)]
    except csv.Error:
        return []


def _no_header(text: str, delimiters: str, given: ColumnsConfig) -> str:
    """Why the first line is not a header, and what to do."""
    name = names_of("image")[0]
    caption = names_of("prompt")[0]
    delimiter = max(delimiters, key=lambda delimiter: len(_header(text, delimiter)))
    header = _header(text, delimiter)
    shown = repr(delimiter.join(header)[:_SHOWN])
    is_image = [split_suffix(value)[1] in IMAGE_SUFFIXES for value in header]
    if any(is_image):
        titles = [
            name if image else caption if is_image.count(False) == 1 else "..."
            for image in is_image
        ]
        return f"its first line, {shown}, names an image: there is no header. Put {delimiter.join(titles)!r} above it"
    rows = [dict(zip(header, row, strict=False)) for row in _some_rows(text, delimiter)]
    what = f"{shown} is not a header with {name!r} and {caption!r}"
    try:
        columns = columns_of(rows or [dict.fromkeys(header)], given)
    except Unfit as error:
        return str(error)
    if len(header) < 2 or not rows:
        return f"{what}. Add one with these names, and commas between them"
    if columns.image:
        texts = ", ".join(in_yaml(key) for key in header if key not in columns.image)
        return f"{what}: no column is known as the caption. Say which it is: 'columns: {{prompt: ...}}', of {texts}"
    return f"{what}: it {unknown(rows)}"


def _parquet_lines(path: str) -> Iterator[_Line]:
    """Each row is a line by its number."""
    try:
        for number, row in enumerate(table_rows(path), 1):
            yield _Line(number, row)
    except ParquetError as error:
        raise Unfit(str(error)) from error


def _json_lines(text: str) -> Iterator[_Line]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield _Line(
                    number,
                    {},
                    f"{NO_JSON}: {getattr(error, 'msg', error)}. Fix the line",
                )
                continue
            yield _json_line(number, row)


def _json_entries(text: str) -> Iterator[_Line]:
    name = names_of("image")[0]
    caption = names_of("prompt")[0]
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"{NO_JSON}: {getattr(error, 'msg', error)}. Fix it, or write a line for each image"
        yield _Line(getattr(error, "lineno", 1), {}, reason)
        return
    rows = [whole]
    if isinstance(whole, list):
        rows = whole
    elif isinstance(whole, dict):
        rows = []
        for key, row in whole.items():
            values = row if isinstance(row, dict) else {caption: row}
            rows.append({name: key, **values})
    for number, row in enumerate(rows, 1):
        yield _json_line(number, row)


def _json_line(number: int, row: Any) -> _Line:
    if isinstance(row, dict):
        return _Line(number, row)
    return _Line(number, {}, _NO_NAME)


# ---------------------------------------------------------------- which images are
# meant


def placed(
    table: Mapping[str, TableRow], path: str, folder: str, names: Collection[str]
) -> tuple[dict[str, TableRow], str]:
    """The rows by the names of the images, where it is certain which image a row names;
    other rows keep the name that is written. Second, the folder that was removed from
    the beginning of names.

    Names may also be paths from the folder of the table or from the working directory,
    have `\\` between folders, or all begin with one folder that does not exist. path:
    of the table. folder: of the images. names: of the images.
    """
    known = {*names, *(split_suffix(name)[0] for name in names)}
    sure = {split_suffix(name)[0] for name in table if name in known}
    by_place: dict[str, list[str]] = {}
    by_begin: dict[str, list[tuple[str, str]]] = {}
    whereabouts = _Whereabouts(folder, (os.path.dirname(path) or ".", "."))
    for name in table:
        if name in known:
            continue
        slashes = image_name(name.replace("\\", "/"))
        places = {
            place for place in (slashes, *whereabouts.inside(slashes)) if place in known
        }
        for place in places:
            by_place.setdefault(place, []).append(name)
        if not places and not whereabouts.is_file(slashes):
            end = _known_end(slashes, known)
            if end:
                by_begin.setdefault(slashes.removesuffix(end), []).append((end, name))
    begin = ""
    if len(by_begin) == 1:
        ((begin, guessed),) = by_begin.items()
        for end, name in guessed:
            by_place.setdefault(end, []).append(name)
    of_name = {
        written[0]: place
        for place, written in by_place.items()
        if len(written) == 1 and split_suffix(place)[0] not in sure
    }
    return {of_name.get(name, name): row for name, row in table.items()}, begin


def _known_end(path: str, known: Collection[str]) -> str:
    """The longest end of a path that is a known name; empty for none."""
    parts = path.split("/")
    ends = ("/".join(parts[at:]) for at in range(1, len(parts)))
    return next((end for end in ends if end in known), "")


def with_slashes(name: str, folder: str) -> str:
    """The path of an image from a folder. A path that is written as on Windows, and
    does not exist, gets `/` between folders."""
    if "\\" not in name or os.path.lexists(os.path.join(folder, name)):
        return name
    return image_name(name.replace("\\", "/"))


class _Whereabouts:
    """Finds the files that the paths of a table mean. folder: of the images. bases: the
    folders that the paths may begin at."""

    def __init__(self, folder: str, bases: Sequence[str]) -> None:
        self._folder = real_path(folder) + os.sep
        self._bases = [os.path.expanduser(base) for base in bases]
        self._real: dict[str, str] = {}
        """Folder -> its canonical path: one for many files."""

    def inside(self, path: str) -> Iterator[str]:
        """The path relative to the folder of the images, if it is inside it."""
        folder, name = os.path.split(path)
        for base in self._bases:
            whole = os.path.join(base, folder)
            if whole not in self._real:
                self._real[whole] = real_path(whole)
            real = self._real[whole]
            if (real + os.sep).startswith(self._folder):
                yield os.path.join(real + os.sep, name).removeprefix(self._folder)

    def is_file(self, path: str) -> bool:
        return any(os.path.isfile(os.path.join(base, path)) for base in self._bases)


def image_name(path: str) -> str:
    """The name of an image in a table of captions: its path from the folder of the
    images, in Unicode NFC.

    >>> image_name("./maya/a.jpg")
    'maya/a.jpg'
    """
    return normalize("NFC", normpath(path))


def lost_folders(table: Table, images: bool = True) -> list[str]:
    """Folders that a table names by absolute paths and that do not exist on this
    machine. images: also those of the images, not only of their control images and
    worse images."""
    named = []
    for line in table.lines:
        if images:
            named.append(line.name)
        named += [*line.row.references, *line.row.worse]
    absolute = [name.replace("\\", "/") for name in named if is_absolute(name)]
    folders = dict.fromkeys(name.rpartition("/")[0] for name in absolute)
    lost = [
        folder for folder in folders if not os.path.isdir(os.path.expanduser(folder))
    ]
    return lost


def line_naming(table: Table, named: str) -> str:
    """The first line of the table that names the file `named`, as file:line."""
    for number, name, row in table.lines:
        if named in (name, image_name(name), row.mask, *row.references, *row.worse):
            return f"{table.path}:{number}"
    return table.path
