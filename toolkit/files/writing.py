"""Atomic writes of files and folders, and safe reads of files that others wrote.

- `atomic_write` and `atomic_write_dir` write under a temporary name, flush it to the
  disk and rename it. A reader sees the old contents or the new ones, also after a kill
  or a power cut. `write_text` and `write_json` redact secrets.
- Only folders that the program made itself are replaced (`is_own_folder`).
- `read_regular`, `read_chunks` and `read_source` never wait for a pipe or a device.
- `find_config` finds the config that a user names.

All rooms write with it. Tensors are written by `safetensors_io`, logs by `log`.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from difflib import get_close_matches
from functools import lru_cache
from itertools import count
from pathlib import Path
from threading import Lock, get_ident
from typing import IO, Any, BinaryIO

from toolkit.errors import RunError, UserError
from toolkit.files.redact import redact_json, redact_text
from toolkit.version import NAME

logger = logging.getLogger(__name__)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TOOLKIT_ROOT = Path(__file__).resolve().parents[2]
EXTENSIONS_ROOT = TOOLKIT_ROOT / "extensions"
CONFIG_ROOT = TOOLKIT_ROOT / "config"


def python_path() -> str:
    """PYTHONPATH of another process that imports this program: this checkout, then the
    folders of the present PYTHONPATH, since libraries may be found through them."""
    return os.pathsep.join(
        filter(None, (str(TOOLKIT_ROOT), os.environ.get("PYTHONPATH")))
    )


def short(path: Path) -> str:
    """A path as text, relative to the working directory if it is in it.

    >>> short(Path.cwd() / "output" / "cat")
    'output/cat'
    """
    with suppress(OSError):  # the working directory is gone
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
    return str(path)


CONFIG_SUFFIXES = (".yaml", ".yml", ".json", ".jsonc")


def with_schema(text: str, file: Path) -> str:
    """The text of a job with a second line that names the schema, which editors read.
    file: where it will be written."""
    schema = TOOLKIT_ROOT / "docs" / "job.schema.json"
    folder = file.absolute().parent
    if folder.drive == schema.drive:  # on Windows another has no relative path
        schema = Path(os.path.relpath(schema, folder))
    return text.replace(
        "\n", f"\n# yaml-language-server: $schema={schema.as_posix()}\n", 1
    )


def find_config(argument: str) -> Path:
    """The config file meant by `argument`: the path as given, else with a suffix or in
    a `config` folder.

    Raises UserError that lists every place it looked.
    """
    # leaves the name of an unknown user as it is
    given = Path(os.path.expanduser(argument))
    named = Path(*given.parts[1:]) if given.parts[:1] == ("config",) else given
    bases = dict.fromkeys([given, Path("config") / named, CONFIG_ROOT / named])
    suffixes = ("", *CONFIG_SUFFIXES)
    for place in (Path(f"{base}{suffix}") for base in bases for suffix in suffixes):
        # Not `isfile`: a pipe such as /dev/stdin is a source too. Not those of `Path`:
        # they raise for a name that no file can have, such as a whole command that was
        # pasted.
        if os.path.exists(place) and not os.path.isdir(place):
            return place
    if len(os.fsencode(argument)) > MOST_NAME_BYTES:
        raise UserError(
            f"{argument[:80]!r}... is neither a file nor a command that can be read."
        )
    above = next(filter(None, map(from_above, map(str, bases))), "")
    missing = f"no such config. {above}".rstrip() + _near_config(bases)
    what = _folder_instead(given) if os.path.isdir(given) else missing
    looked = "".join(
        f"\n  {base} (also with {', '.join(CONFIG_SUFFIXES)})" for base in bases
    )
    raise UserError(
        f"{argument}: {what} Working directory: {os.getcwd()}. Looked for:{looked}"
    )


def from_above(path: str) -> str:
    """What to do where a relative path leads somewhere from a folder above the working
    directory; empty where it does not."""
    for folder in Path.cwd().parents[:-1]:
        if any(
            os.path.exists(folder / f"{path}{end}") for end in ("", *CONFIG_SUFFIXES)
        ):
            return f"It is in '{folder}': begin with 'cd {folder}'. "
    return ""


def _folder_instead(folder: Path) -> str:
    """The remedy for a folder that is given instead of a config."""
    jobs = [
        str(folder / name)
        for name in sorted(os.listdir(folder))
        if name.endswith(CONFIG_SUFFIXES[:2])
    ]
    remedy = f"For images in it, 'run.py new NAME {folder}' writes a job, and 'run.py lint {folder}' checks them."
    if jobs:
        remedy = f"Give a file: {', '.join(jobs[:3])}{', ...' * (len(jobs) > 3)}."
    return f"is a folder, not a config file. {remedy}"


def _near_config(bases: Iterable[Path]) -> str:
    """A sentence with a config that has nearly the name of one of these; empty without
    one."""
    for base in bases:
        with suppress(OSError, ValueError):
            stems = {
                os.path.splitext(name)[0].lower(): name
                for name in sorted(os.listdir(base.parent), reverse=True)
                if name.endswith(CONFIG_SUFFIXES)
            }
            near = get_close_matches(base.stem.lower(), stems, n=1, cutoff=0.6)
            if near:
                return f" Did you mean {str(base.parent / stems[near[0]])!r}?"
    return ""


def moved_examples() -> dict[str, str]:
    """Folder of the program's own examples -> its real place, in a working directory
    without them. The small model and the files of the examples' jobs are there."""
    if Path("config/examples").is_dir():
        return {}
    return {"config/examples": str(CONFIG_ROOT / "examples")}


def read_source(path: str | Path) -> bytes:
    """The contents of a file that a user wrote for the program: a job, another program's
    config. Raises OSError for anything but a regular file, a pipe or a terminal, and
    for more than MOST_SOURCE bytes: a device never ends."""
    with open(path, "rb", buffering=0) as file:
        kind = os.fstat(file.fileno()).st_mode
        if not (
            stat.S_ISREG(kind)
            or stat.S_ISFIFO(kind)
            or stat.S_ISSOCK(kind)
            or file.isatty()
        ):
            raise OSError(errno.EINVAL, "it is neither a file nor a pipe", str(path))
        data = bytearray()
        while len(data) <= MOST_SOURCE and (portion := file.read(_PORTION)):
            data += portion
    if len(data) > MOST_SOURCE:
        raise OSError(
            errno.EFBIG,
            f"it is larger than {readable_size(MOST_SOURCE)}, as no config is",
            str(path),
        )
    return bytes(data)


MOST_SOURCE = 4_000_000
"""Bytes of a config at the most."""

MOST_NAME_BYTES = 4000
"""A longer text is not taken for a name."""


TEMP_FILE_GLOB = ".*.????????.tmp"
"""Names of files and folders that `atomic_write`, `atomic_write_dir` and `remove` leave
behind when the process is killed."""

TEMP_NAME_BYTES = len("..12345678.tmp")
"""Bytes by which such a name is longer than the name of the finished file."""

CACHE_FOLDER = "_cache"
"""Folder in the training folder that all of its jobs share. It is never inside the
user's dataset."""

SAFETENSORS_TEMP_GLOB = ".tmp??????"
"""Names of files that a killed `save_file` leaves: safetensors writes under such a name
first (since 0.8, pull 764)."""

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp", re.DOTALL)
"""Matches such a name; its group is the name of the finished file."""

_NOT_WRITTEN = (
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.ESTALE,
    errno.ENOENT,
)
"""Errors of a flush after which the contents of the file are not on the disk."""

_PORTION = 1 << 16


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[Path]:
    """A temporary path in the same folder; the block makes a file of it, or a folder
    where `path` is free. Then it takes the place of `path`.

    durable: flush the file to the disk first, so that it survives a power cut; files
    that are rewritten all the time do not need this. When the block raises, `path` is
    untouched and the temporary file is removed. Temporary files that a killed process
    has left are removed too (`_sweeping`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = leftover_name(path)
    with _sweeping(path):
        try:
            yield temporary
            if durable:
                fsync(temporary)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # the next process removes it
                remove(temporary)
            raise


def sweep(path: Path) -> None:
    """Removes the temporary files of `path`, as `atomic_write` does, also those that
    are newer than the first write of this process: before several files of a folder are
    written at once."""
    _left_in.cache_clear()
    with _sweeping(path):
        pass


@contextmanager
def _sweeping(path: Path) -> Iterator[None]:
    """Removes the temporary files of `path` that existed when this process first wrote
    to its folder. Files of other writers are safe: each writer holds a shared lock of
    the folder, and only who holds it alone, as inside `folder_lock`, removes anything.
    On systems without locks the files stay."""
    left = _left_in(path.parent.absolute()).pop(path.name, [])
    holder = _holders.get(os.path.realpath(path.parent)) if left else None
    handle = None
    with suppress(OSError):  # a folder that may not be read
        handle = os.open(path.parent, os.O_RDONLY) if fcntl else None
    try:
        if (
            handle is not None
            and left
            and (holder == get_ident() or _try_flock(handle, alone=True))
        ):
            with only_tidy(path, "temporary files of a process that was killed stay"):
                for file in filter(os.path.lexists, left):
                    remove(file)
        if handle is not None:
            _try_flock(handle, alone=False)
        yield
    finally:
        if handle is not None:
            os.close(handle)


@lru_cache(maxsize=64)
def _left_in(folder: Path) -> dict[str, list[Path]]:
    """Name of a file -> its temporary files that are in a folder when it is first
    written to."""
    leftovers = defaultdict[str, list[Path]](list)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            temporary = _TEMPORARY.fullmatch(entry.name)
            if temporary:
                leftovers[temporary[1]].append(Path(entry.path))
    return leftovers


def _try_flock(handle: int, alone: bool) -> bool:
    """Takes the lock of an open folder, alone or with others. Whether it could, at
    once."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


_warned: set[str] = set()


@contextmanager
def only_tidy(path: Path, consequence: str) -> Iterator[None]:
    """For steps that serve only durability or tidiness: an OSError in the block becomes
    a warning, once in a process for each `consequence`."""
    try:
        yield
    except OSError as error:
        if consequence not in _warned:
            _warned.add(consequence)
            inside = [one for one in (path, *path.parents) if one.name.endswith(".tmp")]
            place = inside[-1].parent if inside else path
            logger.warning(f"{place}: {error.strerror or error}: {consequence}")


MARKER = "atelier.json"
"""File in each folder that `atomic_write_dir` made, with the names of its files. Only
such a folder may be replaced, and only while no other files were added to it."""

OF_FILE_MANAGERS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""Files that file managers leave in folders."""

_ASIDE = ".replaced.tmp"
"""End of the name of a folder that makes room for another; TEMP_FILE_GLOB matches
it."""


def is_own_folder(path: Path, known_by: str = "") -> bool:
    """Whether the program made a folder and all its contents: it has a marker that lists
    its files. An empty folder counts as one too, and so does a folder with the file
    `known_by`, such as the folder of a step in a run."""
    if not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir()}
    return not names or known_by in names or (MARKER in names and not added_to(path))


def why_not_replaced(path: Path, is_own: Callable[[Path], bool] = is_own_folder) -> str:
    """Why the file or folder at `path` must not be replaced; empty where there is none,
    or the program made it."""
    if not os.path.lexists(path) or is_own(path):
        return ""
    added = added_to(path)
    named = f"'{path}' holds '{added}', which" if added else f"'{path}'"
    return f"{named} was not made by this program, so it is never replaced. Move it away, or give another place."


def require_own(path: Path, is_own: Callable[[Path], bool] = is_own_folder) -> None:
    """Raises RunError where `path` must not be replaced (`why_not_replaced`)."""
    reason = why_not_replaced(path, is_own)
    if reason:
        raise RunError(reason)


def files_in(folder: Path) -> set[str]:
    """The files and links below a folder, relative to it, without files of file
    managers."""
    places = (
        Path(top, name)
        for top, folders, files in os.walk(folder)
        for name in (*folders, *files)
    )
    return {
        place.relative_to(folder).as_posix()
        for place in places
        if (place.is_symlink() or not place.is_dir())
        and place.name not in OF_FILE_MANAGERS
    } - {MARKER}


def added_to(folder: Path) -> str:
    """The first file of a folder that its marker does not list; empty where there is
    none, or no list."""
    try:
        listed = json.loads(read_regular(folder / MARKER)).get("files")
        added = set() if listed is None else files_in(folder).difference(listed)
        return min(added, default="")
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return ""


@contextmanager
def atomic_write_dir(path: Path, known_by: str = "") -> Iterator[Path]:
    """`atomic_write` for a folder: the block fills a temporary folder, which exists
    already, and flushes its files.

    Cleans up after an earlier attempt that was killed (`settle`). A folder of a run to
    which files were added is moved aside, not replaced. Raises RunError for a folder
    that the program did not make (`is_own_folder`), and where the disk cannot be
    written.
    """
    with os_error_as_run_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        settle(path)
        require_own(path, lambda place: is_own_folder(place, known_by))
        temporary = leftover_name(path)
        temporary.mkdir()
        try:
            with locked(temporary):
                yield temporary
                write_json(
                    temporary / MARKER,
                    {"program": NAME, "files": sorted(files_in(temporary))},
                )
                for folder in (*filter(Path.is_dir, temporary.rglob("*")), temporary):
                    fsync(folder)
                require_own(path, lambda place: is_own_folder(place, known_by))
                if added_to(path):
                    logger.warning(
                        f"{path}: was added to, and is {move_folder_aside(path)} from here on"
                    )
                replace_folder(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Replaces the folder `path` by the complete folder `new`. At each moment the old or
    the new one is complete, and after a kill `settle` restores it."""
    if os.path.lexists(path):
        os.rename(path, _aside(path))
    try:
        os.replace(new, path)
        fsync(path.parent)
    finally:
        settle(path)


def settle(path: Path) -> None:
    """Cleans up after a process that was killed while it replaced the folder `path`: an
    old folder whose place is empty comes back; one whose place is taken, and new ones
    that were never finished, are deleted."""
    aside = _aside(path)
    if os.path.lexists(aside) and not os.path.lexists(path):
        os.rename(aside, path)
    with only_tidy(
        path, "folders that were replaced, or never finished, stay beside it"
    ):
        if aside.is_symlink():
            aside.unlink()
        elif os.path.lexists(aside):
            shutil.rmtree(aside.rename(leftover_name(path)))
        for left in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
            is_folder = left.is_dir() and not left.is_symlink()
            if is_folder and _TEMPORARY.fullmatch(left.name):
                with locked(left) as is_abandoned:
                    if is_abandoned:
                        shutil.rmtree(left)


def folder_at(path: Path) -> Path:
    """The present place of the folder `path`: its own, or the one aside if a process was
    killed while it replaced the folder."""
    if os.path.lexists(path) or not os.path.lexists(_aside(path)):
        return path
    return _aside(path)


def settle_all(folder: Path) -> None:
    """`settle` for each folder in `folder` that was aside when the process was
    killed."""
    for aside in folder.glob(f".*{_ASIDE}"):
        settle(aside.with_name(aside.name.removesuffix(_ASIDE).removeprefix(".")))


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}{_ASIDE}")


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Runs one block at a time for each folder, among all threads and processes of this
    machine. It is for a file that is read, changed and written: without it the second
    of two writers would undo the changes of the first.

    It waits, so the block should be short, and it must not take the lock of the same
    folder again. The lock is on the folder itself: no file is left behind, a kill
    releases it, and read-only folders can be locked too. It does not see other machines
    that share the folder. Raises RunError for a folder that cannot be opened.

    Example::

        with folder_lock(file.parent):
            write_text(file, read_regular(file).decode() + line)
    """
    place = os.path.realpath(folder)
    with _of_threads.setdefault(place, Lock()), ExitStack() as held:
        with os_error_as_run_error(folder):
            if held.enter_context(locked(folder, waits=True)):
                _holders[place] = get_ident()
                held.callback(_holders.pop, place)
        yield


_of_threads: dict[str, Lock] = {}
"""Folder -> lock among the threads of this process, where the system has no others
(Windows)."""

_holders: dict[str, int] = {}
"""Folder -> the thread of this process that is inside `folder_lock`."""


@contextmanager
def locked(path: Path, waits: bool = False) -> Iterator[bool | None]:
    """Whether the block has the lock of a file or folder: False where another process
    holds it and `waits` is False; None where there are no locks."""
    if fcntl is None:
        yield None
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            has_lock: bool | None = True
        except OSError as error:
            has_lock = False if isinstance(error, BlockingIOError) else None
        yield has_lock
    finally:
        os.close(handle)


def file_in_the_way(folder: Path) -> Path | None:
    """The file that keeps a folder from being made: it has the name of the folder or of
    a folder above it."""
    places = (folder.absolute(), *folder.absolute().parents)
    nearest = next(filter(os.path.lexists, places))
    return None if nearest.is_dir() else nearest


def unused_path(parent: Path, prefix: str) -> Path:
    """The first of `<prefix>1`, `<prefix>2`, ... in `parent` that does not exist."""
    paths = (parent / f"{prefix}{number}" for number in count(1))
    return next(path for path in paths if not path.exists())


def move_folder_aside(folder: Path) -> Path | None:
    """Renames a folder to the first free `<folder>.old-<n>` and returns that; None
    where there is no such folder."""
    if not folder.is_dir():
        return None
    target = unused_path(folder.parent, f"{folder.name}.old-")
    with os_error_as_run_error(folder):
        folder.rename(target)
    return target


def remove(path: Path) -> None:
    """Deletes a file, or a folder with its contents. The folder is renamed first, so an
    incomplete folder never has its name."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path.rename(leftover_name(path)))
    else:
        path.unlink()


def leftover_name(path: Path) -> Path:
    """A temporary name in the folder of `path` that TEMP_FILE_GLOB matches; it is
    TEMP_NAME_BYTES longer. For a temporary name, another one of the same file."""
    match = _TEMPORARY.fullmatch(path.name)
    return path.with_name(
        f".{match[1] if match else path.name}.{os.urandom(4).hex()}.tmp"
    )


@contextmanager
def os_error_as_run_error(path: Path) -> Iterator[None]:
    """A failed write inside the block (disk full, no rights) becomes a RunError that
    names `path` and the reason."""
    try:
        yield
    except OSError as error:
        is_copy = error.filename2 is not None  # whose source is not at fault
        elsewhere = (
            error.filename
            and not is_copy
            and not str(error.filename).startswith(f"{path.parent}{os.sep}")
        )
        where = f" ({error.filename})" if elsewhere else ""
        raise RunError(
            f"{path}: cannot be written: {error.strerror or error}{where}"
        ) from error


def link(source: Path, target: Path, durable: bool = True) -> None:
    """Gives a file a second name, in one step; where the disk has no links, a copy gets
    that name. Raises RunError where it cannot."""
    # rename(2) does nothing between two names of one file: the temporary would stay
    if target.exists() and target.samefile(source):
        return
    with os_error_as_run_error(target), atomic_write(target, durable) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically, secrets redacted. Raises RunError when it
    cannot."""
    _write(path, redact_text(text))


def write_json(
    path: Path, data: object, durable: bool = True, private: bool = False
) -> None:
    """Writes indented JSON atomically, secrets redacted; NaN is refused, because other
    readers refuse it. private: only the owner may read it."""
    text = (
        json.dumps(redact_json(data), indent=2, ensure_ascii=False, allow_nan=False)
        + "\n"
    )
    _write(path, text, durable, private)


def _write(path: Path, text: str, durable: bool = True, private: bool = False) -> None:
    with os_error_as_run_error(path), atomic_write(path, durable) as temporary:
        if private:
            temporary.touch(0o600)
        temporary.write_text(_encodable(text), encoding="utf-8", newline="\n")


def _encodable(text: str) -> str:
    """`text` with parts that are not text (of a file's name) as the escapes that JSON
    readers turn back into that name."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def append_json_line(file: IO[str], data: object) -> None:
    """Appends one line of JSON, secrets redacted, to an open file, visible to readers
    at once.

    Raises RunError when it cannot.
    """
    line = json.dumps(redact_json(data), ensure_ascii=False, allow_nan=False) + "\n"
    with os_error_as_run_error(Path(getattr(file, "name", "file"))):
        file.write(_encodable(line))
        file.flush()


def fsync(path: Path) -> None:
    """Asks the operating system to write a file, or the entries of a folder, to the
    disk. Raises OSError where a file could not be written. A disk that does not support
    this, such as some network and FUSE mounts, is a warning."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return  # Windows cannot open a folder
    try:
        handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not is_folder and error.errno in _NOT_WRITTEN:
            raise
        with only_tidy(
            path, "it is not flushed, so that a power cut may cost the newest files"
        ):
            raise


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a file's bytes: 64 hexadecimal digits. The file is read in portions,
    so large files need little memory. Raises OSError as `read_chunks`."""
    digest = hashlib.sha256()
    for portion in read_chunks(path):
        digest.update(portion)
    return digest.hexdigest()


def read_chunks(path: Path | str) -> Iterator[bytes]:
    """The bytes of a file, a portion at a time; of a small one in half the time that a
    file object takes. Raises OSError as `open_regular`."""
    handle = _open_regular(path)
    try:
        while portion := os.read(handle, _PORTION):
            yield portion
    finally:
        os.close(handle)


def open_regular(path: Path) -> BinaryIO:
    """Opens a file to read. Raises OSError for anything but a regular file, such as a
    named pipe, on which a reader would wait for ever."""
    return open(_open_regular(path), "rb")


def _open_regular(path: Path | str) -> int:
    handle = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return handle


def read_regular(path: Path) -> bytes:
    """All bytes of a regular file. Raises OSError as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when it is missing, damaged, or holds something
    else."""
    try:
        document = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def nearest_folder(path: Path) -> Path:
    """The path, or the nearest existing folder above it, which is on the same disk."""
    return next(filter(Path.exists, (path, *path.absolute().parents)))


UNKNOWN_SPACE = sys.maxsize
"""Free bytes of a disk that does not say them, as some network mounts: what lacks room
is told when it is written."""


def free_space(path: Path) -> int:
    """Free bytes on the disk of `path`, or UNKNOWN_SPACE. The path need not exist: the
    nearest existing folder above it decides.

    >>> 0 < free_space(Path("not/made/yet")) < UNKNOWN_SPACE
    True
    """
    try:
        return shutil.disk_usage(nearest_folder(path)).free
    except OSError:
        return UNKNOWN_SPACE


MARGIN = 1 << 30
"""Bytes of the disk that unpacking and sent files leave free."""


def lacks_room(needed: int, folder: Path) -> str:
    """Why `needed` bytes cannot be unpacked into a temporary folder, in words that
    follow a name; empty: they can."""
    free = free_space(folder)
    if needed + MARGIN <= free:
        return ""
    return (
        f"needs {readable_size(needed)} unpacked, and {readable_size(free)} are free "
        f"in {folder.parent}. Make room, or give a folder"
    )


def readable_size(size: float) -> str:
    """Bytes for people (powers of 1000).

    >>> readable_size(1500), readable_size(2e9)
    ('1.5 kB', '2 GB')
    """
    if size >= UNKNOWN_SPACE:
        return "an unknown amount"
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
