"""Finds the images to caption, and keeps the captions: a text file next to each image,
or one table for all.

A caption that is replaced is copied to `.trash/<date>/` first. A run that replaces
captions records its progress in `.trash/unfinished-<digest>.jsonl`, so that it can be
interrupted; the digest is computed from its settings. No image is opened and no model
is used here. The process of `caption` calls `find_images` and `open_captions`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from extensions.tools.caption.config import CaptionConfig
from toolkit.data.pixels.images import ImageError
from toolkit.data.scan.captions import (
    CaptionError,
    NoCaptionError,
    files_beside,
    read_caption,
    with_caption,
)
from toolkit.data.scan.directory import list_folder
from toolkit.data.scan.tables import image_name
from toolkit.errors import RunError, UserError
from toolkit.files.writing import (
    atomic_write,
    folder_lock,
    fsync,
    only_tidy,
    os_error_as_run_error,
    unused_path,
    write_text,
)

logger = logging.getLogger(__name__)

TRASH = ".trash"
"""The name is hidden, so that no dataset reads the folder as images."""

NOT_OF_THE_RESULT = {"type", "name", "device", "batch_size", "overwrite", "recursive"}
"""Keys that may change before an interrupted run resumes."""


class CaptionedImage(NamedTuple):
    """An image that is to have a caption.

    >>> CaptionedImage("cats/07.png", Path("photos/cats/07.png")).reference is None
    True
    """

    name: str
    """Path from the folder of the images, with `/`, in Unicode NFC."""

    path: Path
    reference: Path | None = None
    """Its control image, with `pairs`."""


def find_images(config: CaptionConfig) -> tuple[list[CaptionedImage], list[ImageError]]:
    """The images of the folder, sorted, and the images that cannot have a caption:
    several with one stem, or without a control image.

    Raises UserError for a folder without images, and for names that the table cannot
    hold.
    """
    images = []
    refused = []
    for folder in _folders(config.folder_path(), config.recursive):
        listing = list_folder(str(folder))
        below = folder.relative_to(config.folder_path())
        references = _references(config.pairs_path() / below) if config.pairs else {}
        for stem, names in listing.images.items():
            path = folder / names[0]
            fault = ""
            if len(names) > 1:
                fault = f"{names[1]} has the same caption file. Rename one of them"
            elif config.pairs and stem not in references:
                fault = (
                    f"has no control image of its name in {config.pairs_path() / below}"
                )
            if fault:
                refused.append(ImageError(path, fault))
            else:
                name = image_name((below / names[0]).as_posix())
                images.append(CaptionedImage(name, path, references.get(stem)))
    if not images and not refused:
        remedy = "Give another folder."
        if list_folder(config.folder).subfolders and not config.recursive:
            remedy = "Set recursive (--recursive) for those of its subfolders."
        raise UserError(f"folder: {config.folder!r} holds no image. {remedy}")
    if config.format == "tsv":
        bad = [image.name for image in images if not _fits_tsv(image.name)]
        if bad:
            what = "has a tab, a line break, a space at its edge or bytes that are not UTF-8"
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            raise UserError(
                f"folder: the name {bad[0]!r}{more} {what}, which a TSV table cannot hold. Rename it, or set format to "
                "jsonl (--format jsonl)."
            )
    return images, refused


def _fits_tsv(name: str) -> bool:
    """Whether `read_table` reads the name as it was written."""
    return name == name.strip() and not re.search("[\t\n\r\ud800-\udfff]", name)


def _folders(folder: Path, recursive: bool) -> Iterator[Path]:
    yield folder
    if recursive:
        for name in list_folder(str(folder)).subfolders:
            yield from _folders(folder / name, recursive)


def _references(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    listing = list_folder(str(folder))
    first = {stem: stems[0] for stem, stems in listing.numbered.items()}
    first |= {stem: stem for stem in listing.images}
    return {stem: folder / listing.images[file][0] for stem, file in first.items()}


class Captions:
    """The captions of a folder, old and new. Base class of the two ways to keep them.

    Example::

        captions = open_captions(config)
        for image in captions.missing(images):
            captions.write(image, "a cat on a sofa")
        captions.finish()
    """

    def __init__(self, config: CaptionConfig, home: Path) -> None:
        """home: folder of the trash."""
        self.config = config
        self._trash = home / TRASH
        date = time.strftime("%Y-%m-%d_%H%M%S")
        self._taken = self._trash / date
        if self._taken.exists():
            self._taken = unused_path(self._trash, f"{date}-")
        self._journal = self._trash / f"unfinished-{_digest(config)}.jsonl"
        self.redone: dict[str, str] = {}
        """Name -> caption by this run with `overwrite`, including an interrupted part
        of the run."""
        if config.overwrite and self._journal.is_file():
            self._read_journal()

    def _read_journal(self) -> None:
        """Fills `redone`. The journal is cut off before the first line that is
        incomplete, as after a power cut."""
        whole = 0
        raw = self._journal.read_bytes()
        for line in raw.splitlines(keepends=True):
            try:
                row = json.loads(line if line.endswith(b"\n") else b"")
                self.redone[row["name"]] = row["caption"]
            except (ValueError, LookupError, TypeError, RecursionError):
                with os_error_as_run_error(self._journal):
                    os.truncate(self._journal, whole)
                break
            whole += len(line)

    def missing(self, images: list[CaptionedImage]) -> list[CaptionedImage]:
        """The images that are still to be captioned."""
        if self.config.overwrite:
            return [image for image in images if image.name not in self.redone]
        return [image for image in images if not self.has(image)]

    def has(self, image: CaptionedImage) -> bool:
        """Whether the image has a caption that is not empty."""
        raise NotImplementedError

    def write(self, image: CaptionedImage, caption: str) -> bool:
        """Writes a caption at once and completely. False: the image has got another
        caption meanwhile, which stays."""
        if not self.config.overwrite:
            return self._add(image, caption)
        self._replace(image, caption)
        self.redone[image.name] = caption
        row = {"name": image.name, "caption": caption}
        _append(self._journal, json.dumps(row, ensure_ascii=False))
        return True

    def finish(self) -> None:
        """Removes the journal, and the trash if it is empty, once all is done."""
        self._journal.unlink(missing_ok=True)
        if self._taken.is_dir():
            logger.info(f"old captions are in {self._taken}")
        elif self._trash.is_dir() and not any(self._trash.iterdir()):
            self._trash.rmdir()

    def _replace(self, image: CaptionedImage, caption: str) -> None:
        raise NotImplementedError

    def _add(self, image: CaptionedImage, caption: str) -> bool:
        raise NotImplementedError

    def _keep_old(self, file: Path, name: str) -> None:
        """Copies a file to the trash before it is replaced."""
        target = self._taken / name
        with os_error_as_run_error(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            with only_tidy(target, "old captions are kept with the time of now"):
                shutil.copystat(file, target)
            fsync(target)


class TextFiles(Captions):
    """Keeps each caption in a file next to its image: the one that it has, else a
    `.txt`.

    Example::

        TextFiles(config).write(image, "a cat on a sofa")  # 07.txt next to 07.png
    """

    def __init__(self, config: CaptionConfig) -> None:
        super().__init__(config, config.folder_path())

    def has(self, image: CaptionedImage) -> bool:
        """Whether the image has a file that is not empty. A file that cannot be read
        counts as a caption."""
        return any(map(_is_caption, files_beside(image.path)))

    def _replace(self, image: CaptionedImage, caption: str) -> None:
        with folder_lock(image.path.parent):
            file = next(
                filter(_is_caption, files_beside(image.path)),
                image.path.with_suffix(".txt"),
            )
            try:
                text = with_caption(file, caption)
            except CaptionError as error:
                raise RunError(str(error)) from error
            if file.is_file():
                self._keep_old(file, str(Path(image.name).with_name(file.name)))
            write_text(file, text)

    def _add(self, image: CaptionedImage, caption: str) -> bool:
        file = image.path.with_suffix(".txt")
        with folder_lock(file.parent):
            if self.has(image):
                logger.info(f"{image.name}: got a caption meanwhile, which stays")
                return False
            write_text(file, caption + "\n")
        return True


def _is_caption(file: Path) -> bool:
    try:
        return file.exists() and bool(read_caption(file))
    except NoCaptionError:  # JSON of another program
        return False
    except CaptionError:
        return True


class Table(Captions):
    """Keeps captions in one table: a line for each image, in JSON or with a tab. Lines
    of other images stay.

    Example::

        Table(config, Path("photos/captions.jsonl")).write(image, "a cat on a sofa")
    """

    def __init__(self, config: CaptionConfig, path: Path) -> None:
        """Reads the table. A last line without a line end is kept where it is a
        caption; otherwise the table is copied to the trash and the line is removed.

        Raises UserError for a line that is not a caption.
        """
        super().__init__(config, path.parent)
        self.path = path
        self._is_json = config.format == "jsonl"
        raw = path.read_bytes() if path.is_file() else b""
        try:
            self._lines, torn = whole_lines(raw)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: is not UTF-8 text. Correct it, or give another output."
            ) from error
        if torn and self._is_caption(torn):
            _append(path, "")  # only the line end is missing
            logger.info(
                f"{path}: its last line has no line end and is kept: see that it is whole"
            )
            self._lines.append(torn.decode("utf-8"))
        elif torn:
            self._keep_old(path, path.name)
            with os_error_as_run_error(path):
                os.truncate(path, len(raw) - len(torn))
            logger.info(
                f"{path}: its last line was incomplete and is written again; the file as it was: {self._taken}"
            )
        self._captions: dict[str, str] = {}
        for number, line in enumerate(self._lines, 1):
            if line.strip():
                self._captions.update([self._read(number, line)])

    def _is_caption(self, line: bytes) -> bool:
        try:
            return bool(self._read(0, line.decode("utf-8"))[1])
        except (UserError, UnicodeDecodeError):
            return False

    def _read(self, number: int, line: str) -> tuple[str, str]:
        """Key of the image, and its caption."""
        try:
            if self._is_json:
                row = json.loads(line)
                path = Path(row["image_path"]).expanduser()
                return self._key(path), str(row["caption"])
            name, caption = line.split("\t", 1)
            return image_name(name.strip()), caption.strip()
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            as_json = '{"image_path": ..., "caption": ...}'
            form = as_json if self._is_json else "name, tab, caption"
            raise UserError(
                f"{self.path}:{number}: is not {form}. Correct it, or give another output."
            ) from error

    def _key(self, path: Path) -> str:
        return image_name(str(path.resolve()))

    def _key_of(self, image: CaptionedImage) -> str:
        return self._key(image.path) if self._is_json else image.name

    def has(self, image: CaptionedImage) -> bool:
        """Whether the line of the image has a caption."""
        return bool(self._captions.get(self._key_of(image)))

    def _line(self, image: CaptionedImage, caption: str) -> str:
        if not self._is_json:
            return f"{image.name}\t{' '.join(caption.split())}"
        row = {"image_path": str(image.path.absolute()), "caption": caption}
        if image.reference:
            row["control_path"] = str(image.reference.absolute())
        return json.dumps(row, ensure_ascii=False)

    def _add(self, image: CaptionedImage, caption: str) -> bool:
        _append(self.path, self._line(image, caption))
        return True

    def _replace(self, image: CaptionedImage, caption: str) -> None:
        """Does nothing: `finish_overwriting` replaces the whole table."""

    def finish_overwriting(self, images: list[CaptionedImage]) -> None:
        """Puts the new captions into the table. Lines of images without a new caption
        stay as they are."""
        new = {
            self._key_of(image): self._line(image, self.redone[image.name])
            for image in images
            if image.name in self.redone
        }
        if self.path.is_file():
            self._keep_old(self.path, self.path.name)
        lines = [
            new.pop(self._read(number, line)[0], line)
            for number, line in enumerate(self._lines, 1)
            if line.strip()
        ]
        with os_error_as_run_error(self.path), atomic_write(self.path) as temporary:
            text = "".join(f"{line}\n" for line in (*lines, *new.values()))
            temporary.write_bytes(text.encode(errors="backslashreplace"))


def open_captions(config: CaptionConfig) -> Captions:
    """The captions of a section, in its table or in text files."""
    table = config.table()
    return Table(config, table) if table else TextFiles(config)


def whole_lines(raw: bytes) -> tuple[list[str], bytes]:
    """The lines of a UTF-8 file, and the bytes behind the last line end. Raises
    UnicodeDecodeError.

    >>> whole_lines(b"one\\ntwo\\nthr")
    (['one', 'two'], b'thr')
    """
    body, _, torn = raw.rpartition(b"\n")
    return body.decode("utf-8").split("\n") if body else [], torn


def _append(file: Path, line: str) -> None:
    """Appends a line and flushes it to the disk: the whole line or, on a full disk,
    nothing. A name that is not UTF-8 is escaped as in JSON."""
    with os_error_as_run_error(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = f"{line}\n".encode(errors="backslashreplace")
        with file.open("ab", buffering=0) as opened:
            size = opened.seek(0, os.SEEK_END)
            if opened.write(whole) < len(whole):
                opened.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)


def _digest(config: CaptionConfig) -> str:
    settings = config.model_dump(mode="json", exclude=NOT_OF_THE_RESULT)
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
