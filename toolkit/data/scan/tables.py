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
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice
from posixpath import normpath
from typing import Any, NamedTuple
from unicodedata import normalize

from toolkit.config.sections.dataset import ColumnsConfig
from toolkit.data.pixels.images import IMAGE_SUFFIXES
from toolkit.data.scan.captions import (
    LIST,
    CaptionError,
    caption_of,
    half_in,
    read_text,
)
from toolkit.data.scan.columns import (
    NO_TEXT,
    Columns,
    Unfit,
    are_images,
    columns_of,
    first_of,
    ignoring,
    is_text,
    texts_in,
    to_fill_in,
)
from toolkit.data.scan.directory import real_path, split_suffix
from toolkit.errors import Diagnostic
from toolkit.files.parquet import SUFFIX, ParquetError, is_parquet, table_rows

NO_COLUMNS = ColumnsConfig()
"""A job that does not give any column."""

_SHOWN = 40
"""Characters of a line that a message shows."""

_ROWS_LOOKED_AT = 20
"""Lines of a `.csv` file, the header included, that tell what its columns are."""


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

    rows: dict[str, TableRow] = field(default_factory=dict)
    """By `image_name`."""

    lines: list[TableLine] = field(default_factory=list)
    mistakes: list[Diagnostic] = field(default_factory=list)
    """Errors of the file and of its lines."""

    columns: Columns = field(default_factory=Columns)

    unused: Mapping[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Columns that are not used -> their values: each the name of the image as it is
    written, and a text."""

    is_of_images: bool = False
    """Whether a column has names of images, of a table whose columns are not known."""

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


Lines = Iterator[tuple[int, Mapping[Any, Any] | str]]
"""The rows of a file by the numbers of their lines, in `.json` of their entries. A text
is why a line cannot be used."""


def read_table(
    path: str,
    given: ColumnsConfig = NO_COLUMNS,
    called: str = "",
    several: bool = False,
) -> Table:
    """The rows of a table, by name. given: `DatasetConfig.columns`. called: the file
    that messages name, where the table is a part of another file. several: whether
    lines that differ in the caption only are several captions of one image.

    `.csv` has a header, `.parquet` columns, `.jsonl` an object per line, `.json` is a
    list of such objects, or maps names to them or to captions. Any other file has lines
    `<file name><tab><caption>`, where later tabs are of the caption (`a.png: a cat` too),
    or a header with tabs. Names are paths from the folder of the images, as of `image_name`. Blank lines
    are skipped. Mistakes are named as file:line, of `.json` as file:entry.
    """
    called = called or path
    usable: list[Mapping[Any, Any]] = []
    try:
        found = [*_lines(path, given)]
        usable = [row for _, row in found if not isinstance(row, str)]
        columns = _columns(usable, given) if usable else Columns()
    except (CaptionError, Unfit) as error:
        reason = error.reason if isinstance(error, CaptionError) else str(error)
        keys = dict.fromkeys(chain.from_iterable(usable))
        return Table(
            path,
            called,
            mistakes=[Diagnostic((called,), reason)],
            is_of_images=any(are_images(key, usable) for key in keys),
        )
    used = _used(usable, columns)
    keys = dict.fromkeys(chain.from_iterable(usable))
    unused: dict[str, list[tuple[str, str]]] = {
        key: [] for key in keys if isinstance(key, str) and key not in used
    }
    lines = []
    faults = []
    for number, row in found:
        if isinstance(row, str):
            faults.append((number, row))
            continue
        try:
            name = _name(row, columns)
            line = TableLine(number, name, _row_of(row, columns))
            half = half_in("".join((name, line.row.caption, *line.row.references)))
            if half:
                raise Unfit(half)
            lines.append(line)
        except Unfit as error:
            faults.append((number, str(error)))
            continue
        for key, values in unused.items():
            values += [(name, text) for text in texts_in(row.get(key))]
    rows = _by_image(lines, path, several, faults)
    mistakes = [
        Diagnostic((f"{called}:{number}",), reason)
        for number, reason in sorted(faults, key=lambda fault: fault[0])
    ]
    return Table(path, called, rows, lines, mistakes, columns, unused)


def _by_image(
    lines: Iterable[TableLine], path: str, several: bool, faults: list[tuple[int, str]]
) -> dict[str, TableRow]:
    """The rows by `image_name`. Rows of one image are joined; lines that cannot be
    joined are added to the faults. Arguments as of `read_table`."""
    rows: dict[str, TableRow] = {}
    first: dict[str, int] = {}
    is_there = lru_cache(os.path.isdir)  # one folder has many images
    for number, written, row in lines:
        if os.path.isabs(written) and is_there(os.path.dirname(written)):
            written = os.path.relpath(written, os.path.dirname(os.path.abspath(path)))
        name = image_name(written)
        known = rows.setdefault(name, row)
        if first.setdefault(name, number) == number:
            continue
        differ_in_caption_alone = (
            row.caption != known.caption
            and row._replace(caption=known.caption) == known
        )
        if several and differ_in_caption_alone:
            captions = filter(None, (known.caption, row.caption))
            rows[name] = known._replace(caption=LIST.join(captions))
        else:
            remedy = "Remove one of them"
            if differ_in_caption_alone:
                remedy += ", or give 'captions: lines', which draws one at each use"
            reason = f"{name!r} has a caption in line {first[name]}. {remedy}"
            faults.append((number, reason))
    return rows


def _columns(rows: Sequence[Mapping[Any, Any]], given: ColumnsConfig) -> Columns:
    """The columns of a table that names images. Raises Unfit where no column does, and
    for texts none of which is known as the caption: the columns, and the key of the job
    to fill in."""
    columns = columns_of(rows, given)
    keys = dict.fromkeys(chain.from_iterable(rows))
    written = [key for key in keys if isinstance(key, str) and key.strip()]
    roles = (getattr(columns, role) for role in ("tags", *ColumnsConfig.model_fields))
    taken = {*chain.from_iterable(roles)}
    free = [key for key in written if key not in taken]
    images = [key for key in free if are_images(key, rows)]
    texts = [
        key
        for key in free
        if any(is_text(text) for row in rows for text in _texts_of(row.get(key)))
    ]
    has_caption = any(row.get(key) for key in columns.prompt for row in rows)
    lacks_caption = bool(texts) and not (given.prompt or has_caption)
    is_plain = any(_is_plain(row.get(key)) for key in texts for row in rows)
    lacks = ["prompt"] * (lacks_caption and is_plain)
    if not columns.image:
        cells = [row.get(key) for key in images for row in rows]
        if images and all(isinstance(cell, list) for cell in cells):
            what = f"names several images in a row, in {images[0]!r}"
            raise Unfit(f"{what}. Write a row for each image")
        raise Unfit(
            "has no column that is known as the image; "
            f"its columns are {', '.join(written) or 'none'}. "
            f"{to_fill_in(given, images[1:], ['image', *lacks])}"
        )
    if lacks_caption:
        what = f"has no column that is known as the caption, of {', '.join(texts)}"
        way = to_fill_in(given, images, lacks)
        if not is_plain:
            what += ", whose texts are packed in lists or objects"
            way = "Write the caption as 'caption'"
        raise Unfit(
            f"{what}. {way}, or give {ignoring(texts, given)} where none is meant"
        )
    return columns


def _texts_of(value: Any) -> Iterator[str]:
    """The texts of a value: its own, or those in its lists and objects."""
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts_of(part)


def _is_plain(value: Any) -> bool:
    """Whether the caption of a value can be read."""
    with suppress(Unfit):
        return bool(value) and bool(caption_of(value))
    return False


def _used(rows: Sequence[Mapping[Any, Any]], columns: Columns) -> set[str | None]:
    """The columns that are read. Of a role with several columns these are the first
    ones that any row has."""
    roles = (columns.image, columns.prompt)
    chosen = {first_of(row, keys) for keys in roles for row in rows}
    return chosen.union(
        columns.tags,
        columns.control,
        columns.mask,
        columns.weight,
        columns.ignore,
    )


def _name(row: Mapping[Any, Any], columns: Columns) -> str:
    """The name of the image of a row. Raises Unfit without one."""
    key = first_of(row, columns.image)
    name = row.get(key)
    if isinstance(name, str) and name.strip():
        return name.strip()
    if isinstance(name, list):
        raise Unfit(f"names {len(name)} images in {key!r}. Write a row for each image")
    raise Unfit(_NO_NAME)


NO_JSON = "is not valid JSON"
"""How the message for a file or line begins that is not valid JSON."""

_NOTHING = frozenset({"NaN", "nan", "<NA>", "#N/A", "NULL"})
_EMPTY = "Write one, or leave it empty"
_NO_NAME = "has no 'file_name' and 'caption' of text. Give both, or remove the line"
_NO_TAGS = (
    "has 'tags' that are not text. Write texts, or give 'columns: {ignore: tags}'"
)


def _row_of(row: Mapping[Any, Any], columns: Columns) -> TableRow:
    """The values of a row. Raises Unfit where they are not text."""

    def paths(keys: Iterable[str]) -> tuple[str, ...]:
        """The paths in these columns, each with one or a list."""
        texts = chain.from_iterable(texts_in(row.get(key)) for key in keys)
        found = tuple(text for text in texts if text != NO_TEXT)
        for text in filter(_SEVERAL.search, found):
            words = re.findall(r"[^\[\](){}\s,;|:'\"]+", text)
            names = [word for word in words if split_suffix(word)[1] in IMAGE_SUFFIXES]
            raise Unfit(f'has a list in one cell, {text[:_SHOWN]!r}. Write "{names}"')
        return found

    return TableRow(
        _caption(row, columns),
        paths(columns.control),
        next(iter(paths(columns.mask)), ""),
        _weight(row.get(columns.weight[0])) if columns.weight else 1.0,
    )


def _caption(row: Mapping[Any, Any], columns: Columns) -> str:
    """The caption of a row; kohya's tags follow another caption after a comma."""
    key = first_of(row, columns.prompt)
    tags_key = first_of(row, columns.tags)
    is_tags = key is not None and key == tags_key
    tags = _text(row.get(tags_key), _NO_TAGS).replace(LIST, ", ")
    caption = tags if is_tags else _text(row.get(key), _NO_NAME)
    if caption in _NOTHING:
        raise Unfit(
            f"has the caption {caption!r}, which programs write for none. {_EMPTY}"
        )
    texts = caption.split(LIST)
    if key and not is_tags and tags:
        both = [(text.strip(), tags.strip()) for text in texts]
        texts = [", ".join(filter(None, parts)) for parts in both]
    return LIST.join(texts).strip()


def _text(value: Any, fault: str) -> str:
    """The text in a cell, with LIST between several. fault: of any other value."""
    try:
        return "" if value is None else caption_of(value)
    except Unfit as error:
        is_text = isinstance(value, str)
        raise Unfit(f"has a caption that {error}" if is_text else fault) from error


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


# ---------------------------------------------------------------- dialects: forms of
# files


def _lines(path: str, given: ColumnsConfig) -> Lines:
    """The rows of a file, by its ending. Raises CaptionError for one that cannot be
    read, Unfit for one whose form or header is not known."""
    file = os.path.expanduser(path)
    suffix = split_suffix(path)[1]
    if suffix == SUFFIX or is_parquet(file):
        try:
            yield from enumerate(table_rows(file), 1)
        except ParquetError as error:
            raise Unfit(str(error)) from error
    else:
        text = read_text(file, utf16=True)
        other = _json_entries if text.lstrip()[:1] in ("{", "[") else _tab_separated
        yield from _DIALECTS.get(suffix, other)(text, given)


_PICTURE = rf"(?i:{'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))})"

_NAMED = re.compile(rf"(\s*\S.*?{_PICTURE})(\s*[:;,|=]|\s+-\s)(.*)")
"""A line with the name of an image before its caption, and no tab."""

_SEVERAL = re.compile(
    rf"""{_PICTURE}["']?[\s,;|].*{_PICTURE}|\s*[\[({{]+\s*["'].*{_PICTURE}""", re.DOTALL
)
"""The names of several images in one text, or one in brackets that cannot be read."""


def _tab_separated(text: str, given: ColumnsConfig) -> Lines:
    if _delimiter(text, "\t,;|", given):
        yield from _with_header(text, given, "\t,;|")
        return
    for number, line in enumerate(text.split("\n"), 1):
        written, tab, text_of = line.partition("\t")
        named = None if tab else _NAMED.match(line)
        if named:
            written, tab, text_of = named.groups()
        text_of, more, third = text_of.strip().partition("\t")
        if more and written.strip():
            yield (
                number,
                f"has a third column, {third[:_SHOWN]!r}. A caption has no tab: write a space, "
                "or a header that names each column",
            )
        elif tab and written.strip():
            yield number, {_NAME: written.strip(), _CAPTION: text_of}
        elif line.strip():
            what = "no name before the tab" if tab else "no tab"
            yield (
                number,
                f"{line.strip()[:_SHOWN]!r}: {what}. "
                "Write the name of the image, a tab, its caption",
            )


def _with_header(text: str, given: ColumnsConfig, delimiters: str = ",;\t|") -> Lines:
    """The rows of a file with a header. delimiters: that are tried; spreadsheets write
    the second where numbers have a decimal comma, and may write a first line
    `sep=;`."""
    before, _, rest = text.partition("\n")
    skipped = 0
    if before.strip().lower().startswith("sep=") and len(before.strip()) == 5:
        skipped = 1
        text = rest
        delimiters = before.strip()[4]
    delimiter = _delimiter(text, delimiters, given)
    has_header = bool(delimiter)
    if not has_header:
        if text.strip():
            yield 1 + skipped, _no_header(text, delimiters, given)
        delimiter = _likely(text, delimiters)
    # strict: a quotation mark inside a text is an error, not the end of the text
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            more = [value for value in row.pop(None, ()) if value.strip()]
            if more:
                yield (
                    reader.line_num + skipped,
                    f"has more values than the header: {delimiter.join(more)[:_SHOWN]!r}. "
                    f"Put a caption that has {delimiter!r} in it into quotation marks",
                )
            elif has_header and any(value and value.strip() for value in row.values()):
                yield reader.line_num + skipped, row
    except csv.Error as error:
        yield (
            reader.reader.line_num + skipped,
            f"cannot be read as CSV: {error}. Fix the line",
        )


def _begin(text: str, delimiter: str) -> tuple[list[str], list[dict[str, str]]]:
    """The header of a text by this delimiter, and the first rows below it."""
    lines = list[list[str]]()
    with suppress(csv.Error):  # what is wrong is reported when all is read
        reader = csv.reader(io.StringIO(text), delimiter=delimiter)
        lines += islice(filter(None, reader), _ROWS_LOOKED_AT)
    header, *rows = lines or [[]]
    return header, [dict(zip(header, row, strict=False)) for row in rows]


def _delimiter(text: str, delimiters: str, given: ColumnsConfig) -> str:
    """The delimiter by which the first line is a header of known or given columns;
    empty for none."""
    for delimiter in delimiters:
        header, rows = _begin(text, delimiter)
        # Names with several meanings are decided by the values of the first rows.
        with suppress(Unfit):
            columns = columns_of(rows or [dict.fromkeys(header)], given)
            if columns.is_table or (columns.image and columns.ignore):
                return delimiter
    return ""


def _likely(text: str, delimiters: str) -> str:
    """The delimiter by which the first line has most parts."""
    return max(delimiters, key=lambda each: len(_begin(text, each)[0]))


def _no_header(text: str, delimiters: str, given: ColumnsConfig) -> str:
    """Why the first line is not a header, and what to do."""
    delimiter = _likely(text, delimiters)
    header, rows = _begin(text, delimiter)
    shown = repr(delimiter.join(header)[:_SHOWN])
    is_image = [split_suffix(value)[1] in IMAGE_SUFFIXES for value in header]
    if any(is_image):
        other = _CAPTION if is_image.count(False) == 1 else "..."
        titles = delimiter.join(_NAME if image else other for image in is_image)
        return f"its first line, {shown}, names an image: there is no header. Put {titles!r} above it"
    what = f"{shown} is not a header with {_NAME!r} and {_CAPTION!r}"
    if len(header) < 2 or not rows:
        return f"{what}. Add one with these names, and commas between them"
    try:
        _columns(rows, given)
    except Unfit as error:
        return f"{what}: it {error}"
    return f"{what}: it has no column of texts"


def _json_lines(text: str, given: ColumnsConfig) -> Lines:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield _json_line(number, json.loads(line))
            except (ValueError, RecursionError) as error:
                yield number, f"{NO_JSON}: {getattr(error, 'msg', error)}. Fix the line"


def _json_entries(text: str, given: ColumnsConfig) -> Lines:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        if getattr(error, "msg", "") == "Extra data":  # `to_json` of `datasets`
            yield from _json_lines(text, given)
            return
        yield (
            getattr(error, "lineno", 1),
            f"{NO_JSON}: {getattr(error, 'msg', error)}. "
            "Fix it, or write a line for each image",
        )
        return
    if isinstance(whole, dict):
        whole = _rows_in(whole)
    for number, row in enumerate(whole if isinstance(whole, list) else [whole], 1):
        yield _json_line(number, row)


def _rows_in(whole: Mapping[str, Any]) -> list[Any]:
    """The rows in an object of JSON: captions, or objects, by the names of images.
    Raises Unfit for any other."""
    lists = [value for value in whole.values() if isinstance(value, list)]
    if not all(isinstance(text, str) for value in lists for text in value):
        raise Unfit(_NO_ROWS)
    return [
        {_NAME: key, **(row if isinstance(row, dict) else {_CAPTION: row})}
        for key, row in whole.items()
    ]


def _json_line(number: int, row: Any) -> tuple[int, Mapping[Any, Any] | str]:
    return number, row if isinstance(row, dict) else _NO_NAME


_NAME = "file_name"
_CAPTION = "caption"
"""The titles that messages suggest, and that rows without a header get."""

_NO_ROWS = f"is JSON without rows that are known. Write a list of objects with {_NAME!r} and {_CAPTION!r}"

_DIALECTS: Mapping[str, Callable[[str, ColumnsConfig], Lines]] = {
    ".tsv": _tab_separated,
    ".csv": _with_header,
    ".jsonl": _json_lines,
    ".json": _json_entries,
}
"""Ending -> how the text of such a file is read. Any other text is as `.tsv`."""

TEXT_TABLES = tuple(_DIALECTS)
TABLES = (*TEXT_TABLES, SUFFIX)
"""Endings of files with the captions of many images."""


# ---------------------------------------------------------------- which images are
# meant


def placed(
    table: Mapping[str, TableRow], path: str, folder: str, names: Collection[str]
) -> dict[str, TableRow]:
    """The rows by the names of the images, where it is certain which image a row names;
    other rows keep the name that is written.

    Names may also be paths from the folder of the table or from the working directory,
    or have `\\` between folders. path: of the table. folder: of the images. names: of
    the images.
    """
    known = {*names, *(split_suffix(name)[0] for name in names)}
    sure = {split_suffix(name)[0] for name in table if name in known}
    by_place: dict[str, list[str]] = {}
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
    of_name = {
        written[0]: place
        for place, written in by_place.items()
        if len(written) == 1 and split_suffix(place)[0] not in sure
    }
    return {of_name.get(name, name): row for name, row in table.items()}


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


def image_name(path: str) -> str:
    """The name of an image in a table of captions: its path from the folder of the
    images, in Unicode NFC.

    >>> image_name("./maya/a.jpg")
    'maya/a.jpg'
    """
    return normalize("NFC", normpath(path))


def line_naming(table: Table, named: str) -> str:
    """The first line of the table that names the file `named`, as file:line."""
    for number, name, row in table.lines:
        if named in (name, image_name(name), row.mask, *row.references):
            return f"{table.path}:{number}"
    return table.path
