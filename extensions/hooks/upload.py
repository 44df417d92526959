"""Copies of a run in a bucket: its saves, its records, and its newest state, from which a
machine without the run goes on.

`copies.json` beside them lists what is there, with sizes and hashes. A file that it lists
with the same hash is not sent again. A state is listed when all of it is there, and the
one before it is removed only then: the list never names half a state. With the first
state of a start, those that a killed process has left without a list go too.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fsspec import AbstractFileSystem, url_to_fs

from toolkit.errors import RunError
from toolkit.files.run_files import DATASET_PREFIX, STATUS
from toolkit.files.writing import atomic_write, replace_folder, sha256_of
from toolkit.train.checkpoint_store import (
    TEMPORARY,
    checkpoint_dir,
    latest_checkpoint,
    step_of,
)
from toolkit.train.lock import FILE as LOCK
from toolkit.train.run import Run, Saved

from .background import BackgroundCallback
from .config import UploadConfig

logger = logging.getLogger(__name__)

COPIES = "copies.json"

_STATE = re.compile(r"state/(step_\d{9,})/([\w-]+\.\w+)")
_RECORD = re.compile(rf"[\w-]+\.jsonl|{DATASET_PREFIX}[\w-]+\.\w+")
"""What a run that goes on needs beside its state. The names come from the bucket: none
may lead elsewhere."""

_TEXTS = (".json", ".jsonl", ".yaml", ".txt", ".html", ".md")

_BUCKETS = ("s3", "s3a", "gs", "gcs", "hf")
"""Where folders need not be made."""


class UploadCallback(BackgroundCallback):
    """`type: upload`."""

    section: UploadConfig

    def __init__(self, section: UploadConfig) -> None:
        super().__init__(section)
        self._copies: Copies | None = None
        self._is_due = False
        self._begun = False

    def before_start(self, folder: Path, name: str, resumes: bool) -> None:
        place = f"{self.section.to}/{name}"
        try:
            self._copies = Copies(folder, place)
            if resumes:
                self._copies.fetch_newer_state()
        except RunError:
            raise
        except Exception as error:  # whatever a library raises
            reason = f"{type(error).__name__}: {error}"
            raise RunError(
                f"{place} cannot be read, so it is not known whether the run goes on from there: {reason}"
            ) from error

    def on_start(self, run: Run) -> None:
        self._begun = True

    def on_save(self, run: Run, saved: Saved) -> None:
        self._copy(saved)

    def on_end(self, run: Run, finished: bool) -> None:
        self._copy()
        self.finish()

    def on_error(self, run: Run, error: BaseException) -> None:
        if self._begun:  # otherwise the copies are of the run as it was
            self.on_end(run, False)

    def _copy(self, saved: Saved | None = None) -> None:
        """Copies what is new; one that waits to be begun is enough."""
        copies = self._copies
        if copies is None:
            return
        copies.folders |= (
            {path.name for path in saved.files if path.is_dir()} if saved else set()
        )

        def copy() -> None:
            self._is_due = False
            copies.send()

        if not self._is_due:
            self._is_due = True
            self.later(copy)


class Copies:
    """The copies of one run.

    Example::

        copies = Copies(Path("output/maya"), "s3://bucket/loras/maya")
        copies.fetch_newer_state()
        copies.send()
    """

    def __init__(self, folder: Path, place: str) -> None:
        """folder: of the run. place: its address. Raises what the file system raises
        where it cannot be read."""
        self.folder = folder
        self.place = place
        self.folders: set[str] = set()
        """Names of folders that are saves."""
        self.fs: AbstractFileSystem
        self.fs, self.root = url_to_fs(place)
        self._hashes: dict[Path, tuple[tuple[int, int], str]] = {}
        self._is_tidy = False
        self.listed: dict[str, dict[str, Any]] = {}
        try:
            listed = json.loads(self.fs.cat_file(f"{self.root}/{COPIES}"))["files"]
            self.listed = {
                name: {"size": one["size"], "sha256": one["sha256"]}
                for name, one in listed.items()
            }
        except FileNotFoundError:
            logger.debug("%s: nothing is there yet", place)
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning(f"{place}/{COPIES} is damaged: everything is copied again")
        self._whole = {
            match[1] for match in map(_STATE.fullmatch, self.listed) if match
        }

    def send(self) -> None:
        """Copies what is not there. Raises what the file system raises."""
        self.fs.invalidate_cache()
        for file in self._saves():
            try:
                self._send(file)
            except FileNotFoundError:  # an older one, which is deleted meanwhile
                if file.exists():
                    raise
        self._list()
        state = latest_checkpoint(checkpoint_dir(self.folder), by_hash=False)
        if state is None:
            return
        sent = dict(self.listed)
        try:
            for file in sorted(state.iterdir()):
                self._send(file)
        except FileNotFoundError:  # a newer one has replaced it meanwhile, and is next
            self.listed = sent
            return
        now = {self._name(file) for file in state.iterdir()}
        there = [] if self._is_tidy else self.fs.find(f"{self.root}/state")
        unlisted = (f"state/{path.rpartition('/state/')[2]}" for path in there)
        known = {*filter(_STATE.fullmatch, (*self.listed, *unlisted))}
        old = sorted(known - now)
        for name in old:
            self.listed.pop(name, None)
        self._whole.add(state.name)
        self._list()
        self._is_tidy = True
        for name in old:
            self.fs.rm_file(f"{self.root}/{name}")

    def fetch_newer_state(self) -> None:
        """Brings the state that is listed where the run's folder has none as new, and the
        records of its steps. Raises RunError where a copy is damaged."""
        if not self._whole:
            return
        newest = max(self._whole, key=lambda name: step_of(Path(name)))
        root = checkpoint_dir(self.folder)
        here = latest_checkpoint(root, by_hash=False)
        if here and step_of(here) >= step_of(Path(newest)):
            return
        logger.info(
            f"fetching the state of step {step_of(Path(newest))} from {self.place}"
        )
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(
            prefix=TEMPORARY, dir=root, ignore_cleanup_errors=True
        ) as temporary:
            for name in self.listed:
                if (match := _STATE.fullmatch(name)) and match[1] == newest:
                    self._fetch(name, Path(temporary, match[2]))
            replace_folder(Path(temporary), root / newest)
        for name in filter(_RECORD.fullmatch, self.listed):
            with atomic_write(self.folder / name) as file:
                self._fetch(name, file)

    def _fetch(self, name: str, file: Path) -> None:
        self.fs.get_file(f"{self.root}/{name}", str(file))
        if sha256_of(file) != self.listed[name]["sha256"]:
            raise RunError(
                f"{self.place}/{name} is damaged. 'resume: never' starts over; the copies are replaced then."
            )

    def _saves(self) -> Iterator[Path]:
        """The files of the run beside its state, without what only this machine has."""
        for path in sorted(self.folder.iterdir()):
            if (
                path.is_file()
                and path.name not in (STATUS, LOCK)
                and path.name[0] != "."
                and path.suffix != ".tmp"
            ):
                yield path
            elif path.name in self.folders:
                yield from (file for file in sorted(path.rglob("*")) if file.is_file())

    def _send(self, file: Path) -> None:
        """Copies a file unless this content is there."""
        name = self._name(file)
        target = f"{self.root}/{name}"
        # a record grows meanwhile: what is sent is what was read
        record = file.read_bytes() if file.suffix in _TEXTS else None
        size = file.stat().st_size if record is None else len(record)
        digest = self._hash(file) if record is None else sha256(record).hexdigest()
        entry = {"size": size, "sha256": digest}
        if self.listed.get(name) == entry and self._size_there(target) == size:
            return
        if self.place.partition("://")[0] not in _BUCKETS:
            self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        if record is None:
            self.fs.put_file(str(file), target)
        else:
            self.fs.pipe_file(target, record)
        self.listed[name] = entry

    def _hash(self, file: Path) -> str:
        """The hash of a file that is complete; each is read once."""
        stat = file.stat()
        version = (stat.st_size, stat.st_mtime_ns)
        known = self._hashes.get(file)
        if known is None or known[0] != version:
            known = self._hashes[file] = (version, sha256_of(file))
        return known[1]

    def _size_there(self, target: str) -> int | None:
        try:
            return int(self.fs.info(target)["size"])
        except FileNotFoundError:
            return None

    def _list(self) -> None:
        """Without a state of which a part was sent, before the connection broke."""
        states = {name: _STATE.fullmatch(name) for name in self.listed}
        whole = [
            name
            for name, match in states.items()
            if not match or match[1] in self._whole
        ]
        text = json.dumps(
            {"files": {name: self.listed[name] for name in whole}}, indent=1
        )
        self.fs.pipe_file(f"{self.root}/{COPIES}", text.encode())

    def _name(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()
