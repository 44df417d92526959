"""Parquet files: tables, and rows with the pictures in them, as `datasets` writes them
(push_to_hub).

The scan unpacks pictures into the cache (`archives`) and reads tables of captions
(`data.scan.tables`). No Parquet file is written.

A picture is a struct with its `bytes` and the `path` it had, or the bytes alone; a list
has several. Where `bytes` are missing, `path` names a file (to_parquet leaves pictures
behind). They are read with pyarrow, the extra `parquet`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toolkit.errors import install_command
from toolkit.files.unreadable import LONGEST, in_its_place
from toolkit.files.writing import lacks_room

SUFFIX = ".parquet"
MAGIC = b"PAR1"
"""The first bytes of every Parquet file. Source: Apache Parquet format, "File
format"."""

TABLE = "metadata.jsonl"
"""File with the rows of an unpacked file, a line for each: pictures by their names."""

MISSING = f"is a Parquet file, which needs the package 'pyarrow': {install_command('pyarrow')}"
"""Message where pyarrow is not installed."""

_ROWS_AT_ONCE = 1024
_PICTURES_AT_ONCE = 8
"""Rows that are in memory at once, without pictures and with them."""

_LOOKED_AT = 4
"""Rows that are looked at for pictures."""

_KINDS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"\xff\x0a", ".jxl"),
    (b"\0\0\0\x0cJXL ", ".jxl"),
)
"""First bytes of a picture -> the ending of its file."""

HEIC_BRANDS = frozenset(
    b"heic heix heim heis hevc hevx hevm hevs mif1 msf1 miaf MiHB MiHE".split()
)
"""Brands in the first bytes of a HEIC. Source: ISO/IEC 23008-12, and `libheif`."""


class ParquetError(OSError):
    """A file that cannot be read as Parquet; the message gives the reason."""


def is_parquet(path: str | Path) -> bool:
    """Whether a file begins with the four bytes of a Parquet file. False for a file
    that is missing or cannot be read. Needs no pyarrow."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def is_missing() -> bool:
    """Whether pyarrow, which reads Parquet files, is not installed. Does not import
    it."""
    return find_spec("pyarrow") is None


class ParquetRows:
    """A Parquet file that is read row by row.

    Raises ParquetError where pyarrow is missing, and for a file that is damaged, also
    while it is read.

    Example::

        rows = ParquetRows("data/train.parquet")
        print(rows.count, rows.pictures)
        first = next(rows.rows())
    """

    def __init__(self, path: str | Path) -> None:
        if is_missing():
            raise ParquetError(MISSING)
        with open(path, "rb") as file:
            reason = in_its_place(file.read(LONGEST + 1))
        if reason:
            raise ParquetError(reason)
        import pyarrow
        from pyarrow import parquet

        self._damage = (pyarrow.ArrowException, OSError, UnicodeDecodeError)
        try:
            self._file = parquet.ParquetFile(path)
        except self._damage as error:
            raise ParquetError(
                f"cannot be read as Parquet: {_first_line(error)}"
            ) from error
        self.pictures = tuple(
            field.name
            for field in self._file.schema_arrow
            if _may_be_picture(field.type, pyarrow.types)
            and any(map(_is_picture, self._first(field.name)))
        )
        """Columns with pictures in them, as the first rows have them; other such
        columns have names of files."""

        self.count = self._file.metadata.num_rows
        groups = map(self._file.metadata.row_group, range(self._file.num_row_groups))
        self.size = sum(group.total_byte_size for group in groups)
        """Bytes without their compression; values that repeat count once."""

    def _first(self, column: str) -> list[Any]:
        """The first values of a column."""
        try:
            batch = next(self._file.iter_batches(_LOOKED_AT, columns=[column]), None)
        except self._damage as error:
            raise ParquetError(
                f"is damaged at its first row ({_first_line(error)})"
            ) from error
        return [row[column] for row in batch.to_pylist()] if batch else []

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows in the order of the file, each as column -> value. Columns without a
        value in a row are left out of it. Raises ParquetError where the file is
        damaged."""
        at = 0
        at_once = _PICTURES_AT_ONCE if self.pictures else _ROWS_AT_ONCE
        try:
            for batch in self._file.iter_batches(at_once):
                for row in batch.to_pylist():
                    yield {
                        key: value for key, value in row.items() if value is not None
                    }
                    at += 1
        except self._damage as error:
            raise ParquetError(
                f"is damaged behind row {at:,} ({_first_line(error)})"
            ) from error


def _may_be_picture(kind: Any, kinds: Any) -> bool:
    """Whether values of this type of pyarrow can be pictures, or lists of them."""
    if kinds.is_list(kind) or kinds.is_large_list(kind):
        return _may_be_picture(kind.value_type, kinds)
    if kinds.is_struct(kind):
        names = {kind.field(at).name for at in range(kind.num_fields)}
        return {"bytes", "path"} <= names
    return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))


def _is_picture(value: Any) -> bool:
    """Whether a value is a picture, or a list of them. The bytes of a struct are a
    picture; other bytes may be anything."""
    if isinstance(value, list):
        return any(map(_is_picture, value))
    if isinstance(value, dict):
        return bool(value.get("bytes"))
    return isinstance(value, bytes) and bool(kind_of_picture(value))


def picture_of(value: Any) -> bytes:
    """The encoded bytes of a picture from a cell: the cell itself, or its entry `bytes`
    as datasets of Hugging Face store it. b"" where the cell has none.

    >>> picture_of({"bytes": b"RIFF", "path": "a.webp"}), picture_of("a.webp")
    (b'RIFF', b'')
    """
    image_bytes = value.get("bytes") if isinstance(value, dict) else value
    return image_bytes if isinstance(image_bytes, bytes) else b""


def kind_of_picture(beginning: bytes) -> str:
    """The ending of a picture's file, by its first bytes; empty where they are of none.

    >>> kind_of_picture(b"BM6"), kind_of_picture(b"# Notes")
    ('.bmp', '')
    """
    if beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP":
        return ".webp"
    if beginning[4:8] == b"ftyp":
        brand = beginning[8:12]
        is_avif = brand in (b"avif", b"avis")
        return ".avif" if is_avif else ".heic" if brand in HEIC_BRANDS else ""
    return next((ending for begin, ending in _KINDS if beginning.startswith(begin)), "")


def suffix_of(picture: bytes) -> str:
    """The ending of a picture's file. A picture of an unknown kind gets the ending of
    PNG, and reading it reports the error."""
    return kind_of_picture(picture) or ".png"


def plain(value: Any) -> Any:
    """A value for JSON. A picture becomes its name; a value that is neither text,
    number, list nor mapping, such as a date, becomes text."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return value["path"]
    if isinstance(value, dict):
        return {str(key): plain(element) for key, element in value.items()}
    if isinstance(value, list):
        return [plain(element) for element in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    return str(value)


def has_pictures(path: str | Path) -> bool:
    """Whether a Parquet file has pictures in it. True also for a file that cannot be
    read, so that its error is reported."""
    try:
        return bool(ParquetRows(path).pictures)
    except ParquetError:
        return True


def table_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a table. Raises ParquetError for a file that cannot be read, or that
    has pictures in it."""
    file = ParquetRows(path)
    if file.pictures:
        raise ParquetError(
            f"has the pictures in it ({', '.join(file.pictures)}). Give it as 'folder_path'"
        )
    return (plain(row) for row in file.rows())


def unpack(path: str | Path, folder: Path) -> None:
    """Writes the pictures of a file into `folder`, each in the folder of its column,
    and `TABLE` with all rows. A picture that several rows share is written once, and
    has a name for each of them.

    Raises ParquetError, also where the disk is too small, and OSError.
    """
    file = ParquetRows(path)
    if not file.count:
        raise ParquetError("has no rows. Take it out")
    if not file.pictures:
        raise ParquetError("is a table without pictures. Give it as 'captions_file'")
    fault = lacks_room(file.size, folder)
    if fault:
        raise ParquetError(fault)
    known: dict[bytes, Path] = {}
    with open(folder / TABLE, "w", encoding="utf-8") as table:
        for number, row in enumerate(file.rows()):
            if not any(key in row for key in file.pictures):
                raise ParquetError(f"has no picture in row {number}. Remove the row")
            name = f"{number:07}"
            record = {
                key: _written(value, key, name, folder, known)
                if key in file.pictures
                else plain(value)
                for key, value in row.items()
            }
            table.write(json.dumps(record, ensure_ascii=False) + "\n")


def _written(
    value: Any, column: str, name: str, folder: Path, known: dict[bytes, Path]
) -> Any:
    """The path of a picture that was written, from `folder`; of several a list. known:
    those that were written, by their hash."""
    if isinstance(value, list):
        return [
            _written(element, column, f"{name}_{number}", folder, known)
            for number, element in enumerate(value)
        ]
    picture = picture_of(value)
    if not picture:
        raise ParquetError(
            f"has no picture in {column!r} of row {name.lstrip('0') or 0}. Remove the row"
        )
    place = column.replace("/", "_").lstrip(".") or "image"
    (folder / place).mkdir(exist_ok=True)
    file = folder / place / f"{name}{suffix_of(picture)}"
    digest = sha256(picture).digest()
    if digest in known:
        with suppress(OSError):  # a disk without links, or too many of one file
            os.link(known[digest], file)
            return f"{place}/{file.name}"
    # compressed, a file of many pictures may be small
    fault = lacks_room(len(picture), folder)
    if fault:
        raise ParquetError(fault)
    file.write_bytes(picture)
    known[digest] = file
    return f"{place}/{file.name}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
