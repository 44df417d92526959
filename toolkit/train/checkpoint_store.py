"""State folders on disk: written whole or not at all, checked when read, the newest few kept.

    state/step_000000340/
      weights.safetensors     raw weights                `<role>/<parameter>`
      ema.safetensors         their averages             `<role>/<parameter>`
      optimizer.safetensors   optimizer state            `<role>/<parameter>/<entry>`
      state.json              step, cursor, settings, and optimizer entries that are not tensors
      MANIFEST.json           format, sizes and sha256 of the others; written last

Written under a temporary name, flushed, renamed; only then are older ones removed. A folder counts only when its
manifest verifies, and the newest is the one with the highest step: no file time is ever asked.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.files import SAFETENSORS_TEMP_GLOB, TEMP_FILE_GLOB, fsync, sha256_of, write_json
from toolkit.safetensors_io import save_file

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "MANIFEST.json"
STATE_FILE = "state.json"
_STEP_FOLDER = re.compile(r"step_(\d{9,})")
_TEMPORARY = ".tmp-"

COMFORTABLE_FREE_SPACE = 2.5
"""A save wants this many times its own size free; with less, older states make room."""

REQUIRED_FREE_SPACE = 1.1
"""With less than this it is not begun."""

VERIFY_THREADS = 2
"""Threads that read a state back while it is written and flushed. They end with the save."""


@dataclass(frozen=True)
class CheckpointData:
    """Everything of one state, on the CPU and independent of the run it was taken from."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    """File stem (weights, ema, optimizer) -> name -> tensor."""

    document: Mapping[str, Any]
    """JSON values."""

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(map(self.size_of, self.tensors))

    def size_of(self, stem: str) -> int:
        """Bytes of the tensors of one file."""
        return sum(tensor.nbytes for tensor in self.tensors[stem].values())


def checkpoint_dir(run_folder: Path) -> Path:
    """Where the states of a run are."""
    return run_folder / "state"


def write_checkpoint(root: Path, snapshot: CheckpointData, keep: int) -> Path:
    """Writes a state and removes older ones beyond the newest `keep` good ones (0 keeps all).

    Raises OSError when it cannot be written; the states that were there are untouched then.
    """
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"step_{snapshot.step:09d}"
    temporary = root / f"{_TEMPORARY}{snapshot.step}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        _write_files(temporary, snapshot)
        if final.exists():  # the same step once more, after a resume: the new one is as good
            shutil.rmtree(final)
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync(root)
    _known_good[final.resolve()] = _file_versions(final)  # its manifest was made from these very files
    remove_old_states(root, keep)
    return final


def remove_old_states(root: Path, keep: int) -> None:
    """Removes what is older than the newest `keep` states that verify; 0 keeps all."""
    good = 0
    for path in reversed(checkpoint_folders(root)) if keep else ():
        if good == keep:
            shutil.rmtree(path)
        elif _is_good(path):
            good += 1


def _write_files(folder: Path, snapshot: CheckpointData) -> None:
    """Writes and flushes one file after another; what is written is read back meanwhile, for the manifest."""
    digests: dict[Path, Future[str]] = {}
    with ThreadPoolExecutor(VERIFY_THREADS, "read back") as readers:
        for stem in sorted(snapshot.tensors, key=snapshot.size_of, reverse=True):  # the longest to read is begun first
            file = folder / f"{stem}.safetensors"
            save_file(snapshot.tensors[stem], file)
            digests[file] = readers.submit(sha256_of, file)
        for file in digests:
            fsync(file)
        write_json(folder / STATE_FILE, snapshot.document)
        digests[folder / STATE_FILE] = readers.submit(sha256_of, folder / STATE_FILE)
    files = {file.name: {"size": file.stat().st_size, "sha256": digests[file].result()} for file in sorted(digests)}
    write_json(folder / MANIFEST, {"format": FORMAT, "step": snapshot.step, "files": files})
    fsync(folder)


def remove_partial_writes(root: Path) -> None:
    """Removes what broken-off saves left in `root` and in the run's folder around it. Only for the lock's owner."""
    for path in root.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path)
    for folder in (root.parent, root.parent / "samples"):
        for path in (*folder.glob(TEMP_FILE_GLOB), *folder.glob(SAFETENSORS_TEMP_GLOB)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def free_disk_space(root: Path, size: int) -> bool:
    """Whether a save of `size` bytes may be begun; when space is short, older states go until one good one is left."""
    root.mkdir(parents=True, exist_ok=True)
    if _free(root) >= COMFORTABLE_FREE_SPACE * size:
        return True
    newest = next(filter(_is_good, reversed(checkpoint_folders(root))), None)
    for path in checkpoint_folders(root):
        if path != newest and _free(root) < COMFORTABLE_FREE_SPACE * size:
            shutil.rmtree(path)
            logger.warning(f"disk space is short: removed {path}")
    if _free(root) >= REQUIRED_FREE_SPACE * size:
        return True
    logger.warning(
        f"disk space is too short to save: {_free(root) / 1e6:.0f} MB free, {size / 1e6:.0f} MB needed. "
        "Training goes on and tries again at the next save. Free some space."
    )
    return False


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def checkpoint_folders(root: Path) -> list[Path]:
    """State folders by ascending step, verified or not."""
    entries = root.iterdir() if root.is_dir() else ()
    return sorted((p for p in entries if is_state_name(p.name)), key=step_of)


def is_state_name(name: str) -> bool:
    """Whether a folder of this name can be a state."""
    return _STEP_FOLDER.fullmatch(name) is not None


def step_of(path: Path) -> int:
    """Optimizer steps done when a state folder was written, by its name."""
    found = _STEP_FOLDER.fullmatch(path.name)
    assert found is not None, path  # every caller has asked `is_state_name`
    return int(found[1])


def latest_checkpoint(root: Path) -> Path | None:
    """The state with the highest step whose manifest verifies; what is skipped is logged with the reason."""
    for path in reversed(checkpoint_folders(root)):
        problem = verify(path)
        if problem is None:
            return path
        logger.warning(f"{path} is skipped: {problem}")
    return None


_known_good: dict[Path, dict[str, tuple[int, int, int]]] = {}
"""State folders that this process wrote or verified, with the stamps their files had then."""


def _is_good(path: Path) -> bool:
    """`verify`, which reads every byte, only for what this process has not seen as it is now."""
    known = _known_good.get(path.resolve())
    return (known is not None and known == _file_versions(path)) or verify(path) is None


def _file_versions(path: Path) -> dict[str, tuple[int, int, int]]:
    """Of each file what changes when it is written to: never asked which state is newer, only whether one changed."""
    found = {file.name: file.stat() for file in path.iterdir()}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def verify(path: Path, by_hash: bool = True) -> str | None:
    """What is wrong with a state folder, or None. Reads all of it; without `by_hash` sizes alone are compared."""
    try:
        stamps = _file_versions(path)
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"its format in {MANIFEST} is {manifest['format']}, this program reads {FORMAT}"
        for name, entry in manifest["files"].items():
            file = path / name
            if not file.is_file() or file.stat().st_size != entry["size"]:
                return f"{name} is missing or has another size than {MANIFEST} says"
            if by_hash and sha256_of(file) != entry["sha256"]:
                return f"{name} is damaged (sha256 differs from {MANIFEST})"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    if not by_hash:
        return None
    _known_good[path.resolve()] = stamps
    return None


def read_checkpoint_json(path: Path) -> dict[str, Any]:
    """The JSON part of a verified state."""
    return json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
