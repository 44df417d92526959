"""Checkpoint folders on disk: written atomically, verified when read, the newest few
kept.

    state/step_000000340/
      weights.safetensors     raw weights                `<role>/<parameter>`
      ema.safetensors         their EMA                  `<role>/<parameter>`
      optimizer.safetensors   optimizer state            `<role>/<parameter>/<entry>`
      state.json              step, cursor, settings, and optimizer entries that are not tensors
      .metadata, __<rank>_<number>.distcp  the rows of sharded tensors (`sharded_state`), instead of in the files above
      MANIFEST.json           format, sizes and sha256 of the others; written last

A checkpoint is written under a temporary name, flushed and renamed; only then are older
ones removed. It counts only when its manifest verifies. The newest is the one with the
highest step: file times are never used.

`callbacks.save` writes through this module, `resumption` chooses what to resume from.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from toolkit.errors import RunError
from toolkit.files.safetensors_io import save_file
from toolkit.files.writing import (
    SAFETENSORS_TEMP_GLOB,
    TEMP_FILE_GLOB,
    fsync,
    link,
    only_tidy,
    read_regular,
    readable_size,
    replace_folder,
    settle_all,
    sha256_of,
    short,
    write_json,
)

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT = 1
FORMAT_ROWS = 2
"""With files of `sharded_state`, which earlier versions do not read."""

MANIFEST = "MANIFEST.json"
STATE_FILE = "state.json"
_STEMS = ("weights", "ema", "optimizer")
_FILES = {*(f"{stem}.safetensors" for stem in _STEMS), STATE_FILE}
"""The files of every checkpoint, without its manifest."""

_STEP_FOLDER = re.compile(r"step_(\d{9,})")
TEMPORARY = ".tmp-"

COMFORTABLE_FREE_SPACE = 2.5
"""With less free space than this many times the size of a save, older checkpoints are
removed first."""

REQUIRED_FREE_SPACE = 1.1
"""With less than this many times its size a save is not started."""

VERIFY_THREADS = 2
"""Threads that hash the files of a checkpoint while others are written and flushed.
They end with the save."""


FileEntry = Mapping[str, Any]
"""Entry of a file in a manifest: `size` in bytes, `sha256`."""


@dataclass(frozen=True)
class CheckpointData:
    """The contents of one checkpoint, on the CPU and independent of the run.

    >>> snapshot = CheckpointData(340, tensors={"weights": {}}, document={"seed": 42})
    >>> snapshot.size
    0
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    """File stem (weights, ema, optimizer) -> name -> tensor."""

    document: Mapping[str, Any]
    """JSON values."""

    rows_size: int = 0
    """Bytes of the tensors whose rows the ranks write themselves (`sharded_state`)."""

    write_rows: Callable[[Path], Mapping[str, FileEntry]] = lambda folder: {}
    """Writes these into a folder, while training waits; what it wrote, for the
    manifest."""

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return self.rows_size + sum(map(self.size_of, self.tensors))

    def size_of(self, stem: str) -> int:
        """Bytes of the tensors of one file, by its stem. Raises KeyError for another
        one."""
        return sum(tensor.nbytes for tensor in self.tensors[stem].values())


def checkpoint_dir(run_folder: Path) -> Path:
    """The folder of a run's checkpoints. It need not exist.

    >>> checkpoint_dir(Path("output/maya")).as_posix()
    'output/maya/state'
    """
    return run_folder / "state"


def check_writable(root: Path) -> None:
    """Raises RunError where checkpoints could not be saved: `root`, or the folder that
    it will be made in, is not a folder or cannot be written to, or a pipe or a device
    is in the run's folder, on which a reader would wait forever."""
    for folder in (root.parent, root, *checkpoint_folders(root)):
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            if path.exists() and not path.is_file() and not path.is_dir():
                raise RunError(
                    f"{short(path)}: is neither a file nor a folder. Move it away, or give the job another name."
                )
    if root.exists() and not root.is_dir():
        raise RunError(
            f"{short(root)}: cannot be used: it is not a folder. Move it away, or give the job another name."
        )
    there = _nearest_existing(root)
    if not there.is_dir():
        raise RunError(
            f"{there}: is not a folder, so that {root.parent} cannot be made in it. Give another place."
        )
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        raise RunError(
            f"{there}: cannot be written to. Change its rights, or give another training_folder or name."
        )


def _nearest_existing(path: Path) -> Path:
    """The path itself where it exists, else the nearest folder above it that does."""
    for candidate in (path, *path.absolute().parents):
        if os.path.lexists(candidate):
            return candidate
    return path


MOST_TRIED = 1_000_000_000
"""Bytes that `try_saving` writes at the most: a second on a disk, and more than a LoRA
and its state take."""

_TRIED_FILES = 10
"""Each is smaller than the largest file of a state, whatever its size: a limit for
single files is none for all."""


def try_saving(folder: Path, size: int) -> None:
    """Does once in a run's folder what its saves ask of the disk: writes `size` bytes,
    replaces a state, gives a file a second name. Raises RunError where a save would
    fail.

    The bytes are written because a quota is seen in no other way.
    """
    try:
        with TemporaryDirectory(
            prefix=".trial.", suffix=".tmp", dir=folder, ignore_cleanup_errors=True
        ) as trial:
            for number in range(_TRIED_FILES):
                with Path(trial, f"room {number}").open("wb") as file:
                    file.write(bytes(min(size, MOST_TRIED) // _TRIED_FILES))
                fsync(Path(file.name))
            for number in range(_TRIED_FILES):
                Path(trial, f"room {number}").unlink()
            for step in (1, 1, 2):
                write_checkpoint(
                    Path(trial),
                    CheckpointData(step, {stem: {} for stem in _STEMS}, {}),
                    keep=1,
                )
            link(Path(trial) / "step_000000002" / STATE_FILE, Path(trial) / "linked")
    except (OSError, RunError) as error:
        cause = error.__cause__ if isinstance(error, RunError) else error
        reason = getattr(cause, "strerror", None) or error
        raise RunError(
            f"{short(folder)}: cannot be written: a trial save of {readable_size(size)} ended with '{reason}'. Free "
            "some space, or give a training_folder on another disk."
        ) from error


@dataclass(frozen=True)
class BegunCheckpoint:
    """A checkpoint under its temporary name, with the files that were written while
    training waited.

    Example::

        begun = begin_checkpoint(root, snapshot)  # training waits
        write_checkpoint(root, snapshot, keep=2, begun=begun)  # in a thread
    """

    folder: Path
    files: Mapping[str, FileEntry]


def begin_checkpoint(root: Path, snapshot: CheckpointData) -> BegunCheckpoint:
    """Writes the part of a checkpoint for which training waits: the rows of sharded
    tensors. They are in a temporary folder in `root`, which `write_checkpoint` takes
    over.

    Raises OSError when they cannot be written, and any error of `snapshot.write_rows`.
    """
    root.mkdir(parents=True, exist_ok=True)
    temporary = root / f"{TEMPORARY}{snapshot.step}-{os.getpid()}-{os.urandom(4).hex()}"
    temporary.mkdir()
    return BegunCheckpoint(temporary, snapshot.write_rows(temporary))


def write_checkpoint(
    root: Path,
    snapshot: CheckpointData,
    keep: int,
    begun: BegunCheckpoint | None = None,
) -> Path:
    """Writes a checkpoint, what was `begun` of it too, and removes all but the newest
    `keep` good ones (0 keeps all).

    Raises OSError when it cannot be written; existing checkpoints are untouched then.
    """
    begun = begun or begin_checkpoint(root, snapshot)
    final = root / f"step_{snapshot.step:09d}"
    temporary = begun.folder
    try:
        _write_files(temporary, snapshot, begun.files)
        replace_folder(temporary, final)  # the same step again, after a resume
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    with only_tidy(final, "states are read again before older ones are removed"):
        # Its manifest was made from these very files.
        _known_good[final.resolve()] = _file_versions(final)
    remove_old_states(root, keep)
    return final


def remove_old_states(root: Path, keep: int) -> None:
    """Removes checkpoints older than the newest `keep` that verify; 0 keeps all. A
    damaged one that is newer than these stays. An OSError is logged and does not end
    the run."""
    if not keep:
        return
    good = 0
    with only_tidy(root, "old states are not removed"):
        for path in reversed(checkpoint_folders(root)):
            if good == keep:
                shutil.rmtree(path)
            elif _is_good(path):
                good += 1


def _write_files(
    folder: Path, snapshot: CheckpointData, written: Mapping[str, FileEntry]
) -> None:
    """Writes and flushes one file after another; written files are meanwhile read back
    for the manifest's hashes.

    written: those that are there.
    """
    hashes: dict[Path, Future[str]] = {}
    with ThreadPoolExecutor(VERIFY_THREADS, "read back") as readers:
        # The largest file first: it takes longest to read back.
        for stem in sorted(snapshot.tensors, key=snapshot.size_of, reverse=True):
            file = folder / f"{stem}.safetensors"
            save_file(snapshot.tensors[stem], file)
            hashes[file] = readers.submit(sha256_of, file)
        for file in hashes:
            fsync(file)
        write_json(folder / STATE_FILE, snapshot.document)
        hashes[folder / STATE_FILE] = readers.submit(sha256_of, folder / STATE_FILE)
    files = {
        file.name: {"size": file.stat().st_size, "sha256": hashes[file].result()}
        for file in sorted(hashes)
    }
    form = FORMAT_ROWS if written else FORMAT
    write_json(
        folder / MANIFEST,
        {"format": form, "step": snapshot.step, "files": {**files, **written}},
    )
    fsync(folder)


def remove_partial_writes(root: Path) -> None:
    """Removes what interrupted saves left in `root` and in the run's folder, and brings
    back what they had moved aside. Only for the lock's owner."""
    for folder in (root, root.parent):
        settle_all(folder)
    for path in root.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path)
    for folder in (root.parent, root.parent / "samples"):
        for path in (*folder.glob(TEMP_FILE_GLOB), *folder.glob(SAFETENSORS_TEMP_GLOB)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def free_disk_space(root: Path, size: int) -> bool:
    """Whether a save of `size` bytes may start; when space is short, all but the newest
    good checkpoint are removed, the oldest first, until there is enough. Logs what it
    removes, and why a save may not start.

    An OSError is logged, and the save may start then. Raises OSError where `root`
    cannot be made.
    """
    root.mkdir(parents=True, exist_ok=True)
    with only_tidy(
        root, "the free space of its disk is not known, and old states do not make room"
    ):
        return _has_made_room(root, size)
    return True


def _has_made_room(root: Path, size: int) -> bool:
    if _free(root) >= COMFORTABLE_FREE_SPACE * size:
        return True
    newest = next(filter(_is_good, reversed(checkpoint_folders(root))), None)
    for path in checkpoint_folders(root):
        if path != newest and _free(root) < COMFORTABLE_FREE_SPACE * size:
            shutil.rmtree(path)
            logger.warning(f"disk space is short: removed {short(path)}")
    if _free(root) >= REQUIRED_FREE_SPACE * size:
        return True
    logger.warning(
        f"disk space is too short to save: {_free(root) / 1e6:.0f} MB free, {size / 1e6:.0f} MB needed. "
        "Training continues and tries again at the next save. Free some space."
    )
    return False


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def checkpoint_folders(root: Path) -> list[Path]:
    """Checkpoint folders by ascending step, verified or not. Empty where `root` is not
    a folder."""
    entries = root.iterdir() if root.is_dir() else ()
    return sorted((p for p in entries if is_state_name(p.name)), key=step_of)


def is_state_name(name: str) -> bool:
    """Whether a folder of this name can be a checkpoint.

    >>> is_state_name("step_000000500"), is_state_name("samples")
    (True, False)
    """
    return _STEP_FOLDER.fullmatch(name) is not None


def step_of(path: Path) -> int:
    """The optimizer step of a checkpoint, by its folder name. Raises AssertionError
    where `is_state_name` is False.

    >>> step_of(Path("state/step_000000500"))
    500
    """
    match = _STEP_FOLDER.fullmatch(path.name)
    assert match is not None, path  # every caller has asked `is_state_name`
    return int(match[1])


def latest_checkpoint(root: Path, by_hash: bool = True) -> Path | None:
    """The checkpoint with the highest step that verifies (`verify`); skipped ones are
    logged with the reason. None where there is none."""
    for path in reversed(checkpoint_folders(root)):
        problem = verify(path, by_hash)
        if problem is None:
            return path
        logger.warning(f"{short(path)} is skipped: {problem}")
    return None


_known_good: dict[Path, dict[str, tuple[int, int, int]]] = {}
"""Checkpoints that this process wrote or verified, with the versions of their files at
that time."""


def _is_good(path: Path) -> bool:
    """As `verify`, but files that this process has verified and that did not change are
    not read again."""
    known = _known_good.get(path.resolve())
    return (known is not None and known == _file_versions(path)) or verify(path) is None


def _file_versions(path: Path) -> dict[str, tuple[int, int, int]]:
    """File name -> (inode, size, mtime). Only compared for equality, to see whether a
    file changed."""
    versions = {}
    for file in path.iterdir():
        stat = file.stat()
        versions[file.name] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return versions


def verify(path: Path, by_hash: bool = True) -> str | None:
    """The error of a damaged checkpoint, or None. Reads all of it; without `by_hash`
    only sizes are compared.

    It compares the format, the step of the folder's name, and the size and SHA-256 of
    each file with the manifest. Errors of reading are returned, not raised.
    """
    try:
        versions = _file_versions(path)
        manifest = json.loads(read_regular(path / MANIFEST))
        if manifest["format"] not in (FORMAT, FORMAT_ROWS):
            return f"its format in {MANIFEST} is {manifest['format']}, this program reads {FORMAT} and {FORMAT_ROWS}"
        if absent := sorted(_FILES - manifest["files"].keys()):
            return f"{MANIFEST} does not list {absent[0]}"
        step = manifest.get("step", step_of(path))
        if step != step_of(path):
            return f"its name says step {step_of(path)}, {MANIFEST} says {step}"
        for name, entry in manifest["files"].items():
            file = path / name
            if not file.is_file() or file.stat().st_size != entry["size"]:
                return f"{name} is missing or has another size than {MANIFEST} says"
            if by_hash and sha256_of(file) != entry["sha256"]:
                return f"{name} is damaged (sha256 differs from {MANIFEST})"
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        return f"{MANIFEST} cannot be read ({error})"
    if not by_hash:
        return None
    _known_good[path.resolve()] = versions
    return None


@contextmanager
def reading_state(path: Path) -> Iterator[None]:
    """Turns errors in the contents of a state (or of a run's folder) into a RunError.
    Files that verify may still lack an entry, or have one of another type, where
    another program wrote them."""
    try:
        yield
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
        ArithmeticError,
    ) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(
            f"{short(path)}: what it records cannot be used ({reason}). Move it away, or add --restart to begin again."
        ) from error


def read_checkpoint_json(path: Path) -> dict[str, Any]:
    """The JSON document of a verified checkpoint. Raises OSError when it cannot be
    read, and ValueError when it is not JSON."""
    document: dict[str, Any] = json.loads(read_regular(path / STATE_FILE))
    return document
