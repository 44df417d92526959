"""Zip files, and Parquet files with pictures, as folders of images.

A file is unpacked once into the cache and found again by its version, that is its size
and time of change; the scan (`directory`) takes `photos.zip/part` for a folder in this
way. `opened` refuses archives that are encrypted or lead out of their folder, and for
uploads to the page those beyond their `Limits`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, mkdtemp
from typing import NamedTuple

from toolkit.files import parquet
from toolkit.files.unreadable import LONGEST, in_its_place
from toolkit.files.writing import lacks_room, readable_size

SUFFIX = ".zip"


class _Aside(ExitStack):
    """Removes the folder that it has made, where it was asked for one."""

    def __init__(self) -> None:
        super().__init__()
        self.files = dict[str, str]()
        """Folder of an archive in it -> the archive."""

    @cached_property
    def home(self) -> Path:
        folder = TemporaryDirectory(prefix="atelier-", ignore_cleanup_errors=True)
        return Path(self.enter_context(folder))


_aside: ContextVar[_Aside | None] = ContextVar("aside", default=None)
"""Has the folder for archives that the cache does not have; None: the cache itself."""


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """Inside the block, archives that the cache does not have are unpacked into a
    temporary folder, which is removed at the end."""
    with _Aside() as aside:
        token = _aside.set(aside)
        try:
            yield
        finally:
            _aside.reset(token)


def as_given(text: str) -> str:
    """A message with the archives in the place of temporary folders that will be gone.

    >>> as_given("pairs.zip/a.png: is damaged")
    'pairs.zip/a.png: is damaged'
    """
    aside = _aside.get()
    for folder, file in aside.files.items() if aside else ():
        text = text.replace(folder, file)
    return text


def archive_in(path: str) -> tuple[str, str] | None:
    """The zip or Parquet file that a path leads to or into, and the path inside it;
    None where there is none.

    `pairs.zip/before` is the folder `before` of `pairs.zip`.
    """
    suffixes = (SUFFIX, parquet.SUFFIX)
    parts = Path(os.path.expanduser(path)).parts
    for count in range(1, len(parts) + 1):
        if parts[count - 1].lower().endswith(suffixes):
            file = os.path.join(*parts[:count])
            if os.path.isfile(file):
                return file, os.path.join("", *parts[count:])
    return None


def unpacked(file: str, home: Path) -> Path:
    """The folder in `home` with the files of a zip file, or the pictures of a Parquet
    file, which is unpacked where it is not there yet, inside `leaving_nothing`
    elsewhere; folders of its earlier versions are removed.

    Raises OSError for a file that cannot be unpacked, saying why.
    """
    place = hashlib.sha256(os.fsencode(os.path.realpath(file))).hexdigest()[:16]
    status = os.stat(file)
    size_and_time = repr((status.st_size, status.st_mtime_ns)).encode()
    version = hashlib.sha256(size_and_time).hexdigest()[:16]
    folder = home / f"{place}-{version}"
    aside = _aside.get()
    if aside and not folder.is_dir():
        home = aside.home
        folder = home / folder.name
        aside.files[str(folder)] = file
    if folder.is_dir():
        return folder
    home.mkdir(parents=True, exist_ok=True)
    temporary = Path(mkdtemp(prefix=f".{place}-", dir=home))
    try:
        if file.lower().endswith(parquet.SUFFIX):
            parquet.unpack(file, temporary)
        else:
            _extract(file, temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # where it is, another job was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for earlier in home.glob(f"{place}-*"):
        if earlier != folder:
            shutil.rmtree(earlier, ignore_errors=True)
    return folder


def _extract(file: str, folder: Path) -> None:
    """The files of a zip file."""
    with opened(file) as (archive, members):
        fault = lacks_room(sum(member.file_size for member in members), folder)
        if fault:
            raise OSError(fault)
        for member in members:
            archive.extract(member, folder)


class Limits(NamedTuple):
    """Limits of an archive that comes from elsewhere.

    Example::

        limits = Limits(files=10_000, most_bytes=10**10, ratio=100)
        with opened("images.zip", limits) as (archive, members):
            print(len(members))
    """

    files: int

    most_bytes: int
    """Bytes of all of them, unpacked."""

    ratio: int
    """Ratio of the unpacked bytes to the packed ones, from `FREE_RATIO` bytes on."""


FREE_RATIO = 50 * 10**6
_ENTRY = 1000
"""Bytes of a file's entry in the directory of an archive, which is read whole, at the
most."""


@contextmanager
def opened(
    file: str | Path, limits: Limits | None = None
) -> Iterator[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
    """A zip file and its visible files. Raises OSError for one that is damaged,
    encrypted, leads out of its folder or is beyond the limits; also while its files are
    read."""
    try:
        with open(file, "rb") as raw:
            reason = in_its_place(raw.read(LONGEST + 1))
        if reason:
            raise OSError(reason)
        if limits:
            _check_directory(file, limits)
        with zipfile.ZipFile(file) as archive:
            members = [
                member
                for member in archive.infolist()
                if not member.is_dir() and _is_visible(member.filename)
            ]
            for member in members:
                if member.flag_bits & 1:
                    raise OSError(
                        f"{member.filename!r} is encrypted. Unpack it, and give the folder"
                    )
                is_link = stat.S_ISLNK(member.external_attr >> 16)
                if is_link or _leads_out(member.filename):
                    raise OSError(
                        f"{member.filename!r} leads out of the archive. Unpack it, and give the folder"
                    )
            if limits:
                size = sum(entry.file_size for entry in members)
                packed = sum(entry.compress_size for entry in members)
                most = min(limits.most_bytes, max(FREE_RATIO, limits.ratio * packed))
                if size > most:
                    raise OSError(
                        f"holds {readable_size(size)} unpacked, at most {readable_size(most)} are taken. Split it"
                    )
            yield archive, members
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        EOFError,
        ValueError,
    ) as error:
        raise OSError(
            f"is not a readable zip file: {error}. Make it again, or give a folder"
        ) from error


def _check_directory(file: str | Path, limits: Limits) -> None:
    """Raises OSError for an archive with too many files, before its directory is
    read."""
    with open(file, "rb") as raw:
        # APPNOTE.TXT 4.3.16: it ends with a comment
        raw.seek(-min(os.path.getsize(file), 22 + 65535), os.SEEK_END)
        tail = raw.read()
    end = tail[tail.rfind(b"PK\5\6") :]
    count = int.from_bytes(end[10:12], "little")
    size = int.from_bytes(end[12:16], "little")
    if count > limits.files or size > limits.files * _ENTRY:
        raise OSError(f"holds more than {limits.files:,} files. Split it")


def _is_visible(name: str) -> bool:
    """Whether neither its name nor the name of a folder above it hides a file."""
    return not any(
        part == "__MACOSX" or (part.startswith(".") and part != "..")
        for part in PurePosixPath(name).parts
    )


def _leads_out(name: str) -> bool:
    return (
        name.startswith(("/", "\\"))
        or ".." in PurePosixPath(name.replace("\\", "/")).parts
        or ":" in name[:2]
    )
