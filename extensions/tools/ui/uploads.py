"""Uploads: files that are sent to the page, in pieces or in a form.

The pieces of a file are appended to a part file (`Part`). A complete file is checked by
its contents and moved into the folder under a free name. A zip file is unpacked, and
each file in it is checked in the same way. No existing file is ever replaced, and a
file with the same contents is not added again. Images are decoded in the decoder's
process (`extensions.tools.ui.decoder`).

The pages of datasets (`extensions.tools.ui.views.datasets`) and of runs
(`extensions.tools.ui.views.after`) call this module.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath
from secrets import token_hex
from typing import IO, NamedTuple
from unicodedata import category, normalize

from starlette.datastructures import UploadFile

from extensions.tools.ui.decoder import Decoder
from toolkit.data.pixels.images import IMAGE_SUFFIXES, ImageError
from toolkit.data.pixels.unread import other_kind
from toolkit.data.scan.captions import FORMATS, CaptionError, read_caption
from toolkit.data.scan.crops import MOST_BYTES as MOST_CROP
from toolkit.data.scan.crops import SUFFIX as CROP
from toolkit.data.scan.crops import CropError, read_crop
from toolkit.data.scan.directory import list_folder, split_suffix
from toolkit.data.scan.found import repeats_of
from toolkit.data.scan.tables import TEXT_TABLES
from toolkit.errors import RunError
from toolkit.files.archives import SUFFIX, Limits, opened
from toolkit.files.redact import redact_text
from toolkit.files.writing import (
    MARGIN,
    OF_FILE_MANAGERS,
    TEMP_NAME_BYTES,
    folder_lock,
    free_space,
    fsync,
    link,
    read_chunks,
    read_regular,
    readable_size,
    sha256_of,
)

PIECE = 8 * 2**20
"""Maximum size of a piece in bytes."""

MOST_BYTES = {
    SUFFIX: 20 * 10**9,
    **dict.fromkeys(IMAGE_SUFFIXES, 500 * 10**6),
    **dict.fromkeys(TEXT_TABLES, 20 * 10**6),
    **dict.fromkeys(FORMATS, 100_000),
    CROP: MOST_CROP,
}
"""Suffix -> maximum size of a file in bytes. Files with other suffixes are refused."""

MOST_REPEATS = 10_000
"""Maximum number of repeats of a folder that is made here."""

ARCHIVE = Limits(5000, 20 * 10**9, 100)
KEPT_S = 7 * 24 * 3600
"""Seconds after which an incomplete part file is removed."""

Outcome = dict[str, str]
"""The result for a file: `name`, `state` (`added`, `renamed`, `same`, `refused`), and
`text` (its new name, or why it was refused)."""


def is_image(name: str) -> bool:
    """Whether a file is read as an image, by its name.

    >>> is_image("cat.PNG"), is_image("cat.txt")
    (True, False)
    """
    return split_suffix(name)[1] in IMAGE_SUFFIXES


LEFT_OUT = "|".join([r"\._.*", *map(re.escape, sorted(OF_FILE_MANAGERS))])
"""Names of files of file managers, which are skipped silently: a pattern of Python
and of the page's script."""


class Refused(ValueError):
    """A file was refused. The text says why, and what the user can do.

    >>> str(Refused("is not UTF-8 text. Save it as UTF-8"))
    'is not UTF-8 text. Save it as UTF-8'
    """


def checked_name(name: str) -> str:
    """The name of a file in Unicode NFC. Raises Refused for a name that cannot be used.

    >>> checked_name("cat.png")
    'cat.png'
    """
    name = normalize("NFC", name)
    is_bad = not name or name.startswith(".")
    for letter in name:
        is_bad |= letter in "/\\" or category(letter) in ("Cc", "Cs")
    if is_bad:
        raise Refused(
            "its name is hidden, or holds '/', '\\' or control characters. Rename it"
        )
    length = len(name.encode())
    most = 255 - TEMP_NAME_BYTES - len("-99")
    if length > most:
        raise Refused(
            f"its name has {length} bytes, and {most} are the most. Shorten it"
        )
    if split_suffix(name)[1] not in MOST_BYTES:
        what, remedy = other_kind(name)
        if what:
            raise Refused(f"is {what}. {remedy}")
        kind = PurePosixPath(name).suffix or "file without an ending"
        raise Refused(
            f"cannot be trained on: {kind}. Save an image as PNG, a caption as .txt"
        )
    return name


def check_size(name: str, size: int, folder: Path) -> None:
    """Raises Refused for a file that is too large for its kind, or for the disk."""
    most = MOST_BYTES[split_suffix(name)[1]]
    if size > most:
        raise Refused(
            f"is {readable_size(size)}, and {readable_size(most)} are the most. Make it smaller"
        )
    free = free_space(folder)
    if size + MARGIN > free:
        raise Refused(
            f"is {readable_size(size)}. Of the {readable_size(free)} that are free on the disk "
            f"{readable_size(MARGIN)} are kept in reserve. Make room"
        )


class Part:
    """The part of a file that has been received.

    Example::

        part = Part(ui.own / "uploads", "cat", "a.png", size=len(content))
        crc = f"{zlib.crc32(content):08x}"
        is_complete = part.add(0, content, crc) == part.size
    """

    def __init__(self, home: Path, place: str, name: str, size: int) -> None:
        """home: folder of the part files.
        place: a text that differs between files of the same name and size.
        name: the name as `checked_name` returns it.
        size: size of the whole file in bytes.
        """
        self.name = name
        self.size = size
        key = hashlib.sha256(repr((place, name, size)).encode()).hexdigest()[:24]
        # Decoders of HEIF need the suffix.
        self.path = home / (key + split_suffix(name)[1])

    def state(self) -> dict[str, int | str]:
        """The number of bytes that were received (`offset`), and their CRC-32 in hex
        (`hash`). With it the sender checks that it is the same file."""
        crc = length = 0
        with suppress(FileNotFoundError):
            for portion in read_chunks(self.path):
                crc = zlib.crc32(portion, crc)
                length = length + len(portion)
        return {"offset": length, "hash": f"{crc:08x}"}

    def add(self, offset: int, piece: bytes | bytearray, crc: str) -> int:
        """Appends a piece, all of it or nothing.

        offset: where the piece begins in the file. 0 starts over.
        crc: CRC-32 of the piece, in hex.

        Returns the number of bytes that were received. Raises Refused for a piece that is
        damaged, too long, or not the next one, and OSError if it cannot be written.
        """
        if f"{zlib.crc32(piece):08x}" != crc:
            raise Refused("a piece was damaged on its way. Send it again")
        here = self.path.stat().st_size if offset and self.path.exists() else 0
        if offset != here or here + len(piece) > self.size:
            raise Refused(f"{here} bytes are here. Go on from there")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "r+b" if here else "wb", buffering=0) as file:
            file.seek(here)
            try:
                written = file.write(piece)
                while written < len(piece):
                    written += file.write(piece[written:])
            except OSError:
                file.truncate(here)
                raise
        return here + len(piece)


class Announced:
    """The files that a page has begun to send to a dataset, and which of them are here:
    a page that is left takes the names along of those that are not.

    One line is appended per event, so thousands of files cost no more than that.

    Example::

        announced = Announced(ui.own / "uploads" / "cat.list")
        announced.begin("", ["a.png", "b.png"])
        announced.end("", ["a.png"])
        print(announced.read())  # {"a.png": True, "b.png": False}
    """

    def __init__(self, path: Path) -> None:
        """path: the file; `clean` removes it when it is old."""
        self._path = path

    def begin(self, into: str, names: Iterable[str]) -> None:
        """Adds files that are about to be sent. Where all others are here, the list
        begins again. Raises OSError."""
        if all(self.read().values()):
            self.forget()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._append(into, names, False)

    def end(self, into: str, names: Iterable[str]) -> None:
        """Files that are here, or will not be sent. Others than announced ones change
        nothing. Raises OSError."""
        if self._path.is_file():
            self._append(into, names, True)

    def _append(self, into: str, names: Iterable[str], is_over: bool) -> None:
        lines = [f"{json.dumps([_placed(into, name), is_over])}\n" for name in names]
        if lines:
            with open(self._path, "a", encoding="ascii") as file:
                file.write("".join(lines))

    def read(self) -> dict[str, bool]:
        """Each file by its subfolder and name, and whether it is here."""
        files: dict[str, bool] = {}
        with suppress(OSError):
            for line in read_regular(self._path).splitlines():
                with suppress(ValueError, TypeError):  # a line that was cut
                    name, is_over = json.loads(line)
                    if name in files or not is_over:
                        files[str(name)] = bool(is_over)
        return files

    def forget(self) -> None:
        """Nothing is missed any more."""
        self._path.unlink(missing_ok=True)


def _placed(into: str, name: str) -> str:
    return f"{into}/{name}" if into not in ("", ".") else name


def clean(home: Path) -> None:
    """Removes the part files that have not grown for KEPT_S."""
    if not home.is_dir():
        return
    for file in home.iterdir():
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > KEPT_S:
                file.unlink()


def take(
    path: Path,
    name: str,
    folder: Path,
    decoder: Decoder,
    report: Callable[[Outcome], None],
) -> None:
    """Moves a complete file, or the files of a zip file, into the folder.

    path: the complete file. It is removed in any case.
    name: name that the file gets in the folder.
    report: is called with the outcome of each file.
    """
    try:
        if split_suffix(name)[1] == SUFFIX:
            for outcome in _unpack(path, folder, decoder):
                report(outcome)
        else:
            report(_taken(path, name, folder, decoder))
    except OSError as error:
        reason = redact_text(str(error.strerror or error))
        report({"name": name, "state": "refused", "text": reason})
    finally:
        path.unlink(missing_ok=True)


def _taken(path: Path, name: str, folder: Path, decoder: Decoder) -> Outcome:
    try:
        _check(path, name, decoder)
        return {"name": name} | _put(path, name, folder)
    except (Refused, RunError) as error:
        return {"name": name, "state": "refused", "text": redact_text(str(error))}


def _check(path: Path, name: str, decoder: Decoder) -> None:
    """Raises Refused for a file whose contents are not of the type of its suffix."""
    check_size(name, path.stat().st_size, path.parent)
    try:
        if is_image(name):
            decoder.decode(path)
        elif split_suffix(name)[1] in TEXT_TABLES:
            path.read_text(encoding="utf-8-sig")
        elif split_suffix(name)[1] == CROP:
            read_crop(path)
        else:
            read_caption(path)
    except (ImageError, CaptionError) as error:
        raise Refused(error.reason) from error
    except CropError as error:
        raise Refused(str(error)) from error
    except UnicodeDecodeError as error:
        raise Refused("is not UTF-8 text. Save it as UTF-8") from error


def _put(path: Path, name: str, folder: Path) -> Outcome:
    """Moves a file into the folder, under its name or the first free one like it. A file
    whose contents are in the folder already is not added."""
    stem = name[: len(name) - len(split_suffix(name)[1])]
    suffix = name[len(split_suffix(name)[0]) :]
    with folder_lock(folder):
        listing = list_folder(str(folder), names_only=True)
        for number in count(1):
            wanted = f"{stem}-{number}" if number > 1 else stem
            is_picture = suffix.lower() in IMAGE_SUFFIXES
            names = listing.images.get(wanted, ()) if is_picture else ()
            same_name = listing.files.get(wanted + suffix.lower(), wanted + suffix)
            taken = [folder / other for other in names or (same_name,)]
            if any(other.is_file() and _same(path, other) for other in taken):
                return {"state": "same", "text": taken[0].name}
            if not any(os.path.lexists(other) for other in taken):
                link(path, folder / (wanted + suffix))
                fsync(folder)
                return {
                    "state": "added" if number == 1 else "renamed",
                    "text": wanted + suffix,
                }
    raise AssertionError


def _same(one: Path, other: Path) -> bool:
    """Whether two files have the same contents."""
    if one.stat().st_size != other.stat().st_size:
        return False
    return sha256_of(one) == sha256_of(other)


class Incoming(NamedTuple):
    """A file that is sent together with others: in a form, or in a zip file.

    Example::

        Incoming("a.png", PurePosixPath(), "a.png", 1024, partial(open, path, "rb"))
    """

    sent_name: str
    """Name of the file in messages to the sender."""

    folder: PurePosixPath
    """Folder in the zip file."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def of_form(sent: Iterable[object]) -> list[Incoming]:
    """The files of a form. A field without a file has none."""
    return [
        Incoming(
            file.filename,
            PurePosixPath(),
            file.filename,
            file.size or 0,
            partial(getattr, file, "file"),
        )
        for file in sent
        if isinstance(file, UploadFile) and file.filename
    ]


def _unpack(path: Path, folder: Path, decoder: Decoder) -> Iterator[Outcome]:
    """Takes the files of a zip file. A file in a folder `<repeats>_<name>` is put into a
    subfolder of this name."""
    with opened(path, ARCHIVE) as (archive, members):
        files = []
        for member in members:
            place = PurePosixPath(normalize("NFC", member.filename))
            read = partial(archive.open, member)
            files.append(
                Incoming(
                    member.filename, place.parent, place.name, member.file_size, read
                )
            )
        yield from take_all(files, path.parent, folder, decoder, takes_zip=False)


def take_all(
    files: Iterable[Incoming],
    home: Path,
    folder: Path,
    decoder: Decoder,
    takes_zip: bool = True,
) -> Iterator[Outcome]:
    """Checks files and moves them into the folder, and yields the outcome of each.

    Images are first: a caption then gets the name that its image was given.
    home: folder for files that are not checked yet. takes_zip: whether zip files are
    unpacked or refused. Raises OSError if a file cannot be written.

    Example::

        outcomes = list(take_all(files, ui.own / "uploads", folder, decoder(ui)))
        refused = [row["text"] for row in outcomes if row["state"] == "refused"]
    """
    renamed: dict[tuple[PurePosixPath, str], str] = {}
    for file in sorted(files, key=lambda incoming: not is_image(incoming.name)):
        if re.fullmatch(LEFT_OUT, file.name):
            continue
        try:
            name = checked_name(file.name)
            stem, suffix = split_suffix(name)
            if suffix == SUFFIX and not takes_zip:
                raise Refused(
                    "is a zip file in a zip file. Unpack it, and send what is in it"
                )
            check_size(name, file.size, home)
            has_repeats = file.folder.name != folder.name and repeats_of(
                file.folder.name
            )
            if has_repeats > MOST_REPEATS:
                most = f"{MOST_REPEATS:,} are the most. Rename the folder"
                raise Refused(f"is in a folder of {has_repeats:,} repeats, and {most}")
            target = folder / file.folder.name if has_repeats else folder
            part = home / f"{token_hex(12)}{suffix}"
            outcomes = list[Outcome]()
            new_name = renamed.get((file.folder, stem), stem) + name[len(stem) :]
            try:
                with file.open() as source, open(part, "wb") as copy:
                    shutil.copyfileobj(source, copy)
                target.mkdir(exist_ok=True)
                take(part, new_name, target, decoder, outcomes.append)
            finally:
                part.unlink(missing_ok=True)
            if suffix == SUFFIX:
                yield from outcomes
                continue
            outcome = outcomes[0]
            if is_image(name) and outcome["state"] in ("renamed", "same"):
                renamed[file.folder, stem] = split_suffix(outcome["text"])[0]
            if outcome["state"] == "added" and outcome["text"] != file.name:
                outcome["state"] = "renamed"  # a caption, because its image was
            yield outcome | {"name": file.sent_name}
        except Refused as error:
            yield {"name": file.sent_name, "state": "refused", "text": str(error)}
