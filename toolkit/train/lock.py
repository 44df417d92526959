"""One run at a time in a folder: an owner file that is locked while its run lives.

The operating system drops the lock when the process dies, however it dies, so a file that can be locked belongs to
nobody. On a network volume locks of other machines may not be seen: there the owner's heartbeat counts, and an owner
that has been silent for three minutes is gone.

Two locks lie on the file, both let go by the system. `flock` decides who may run. A reader cannot ask about it without
taking it for a moment, and a run that starts in that moment would be refused. So the owner also holds a write lock of
its open file description (F_OFD_SETLK) on the same file: that kind can be asked about (F_OFD_GETLK) without being
taken, with a file that is open for reading only, from any container on the machine. The other ways fall short:
/proc/locks leaves out processes of other containers and names the devices of some file systems otherwise than `stat`;
a process id may belong to another process by now; locks of a process (F_SETLK) vanish when any part of it closes the
file.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from toolkit.errors import RunError
from toolkit.files import os_error_as_run_error

logger = logging.getLogger(__name__)

try:
    import fcntl
except ImportError:  # Windows: the heartbeat alone decides
    fcntl = None  # type: ignore[assignment]  # Windows has none

FILE = "run.lock"
HEARTBEAT_S = 30.0
STALE_AFTER_S = 180.0
"""Seconds without a heartbeat after which an owner on another machine counts as gone."""


_READS = 20
"""Readings of a file in which the owner stands half written, a millisecond apart."""


@dataclass(frozen=True)
class LockHolder:
    """Who runs in a folder."""

    pid: int
    host: str
    boot: str
    """Changes when the machine starts anew; empty where the system does not tell."""

    beat: float
    """Unix time of the last sign of life."""


@dataclass(frozen=True)
class LockState:
    """What `read_lock` finds."""

    held: bool
    """Whether a live process runs in the folder."""

    owner: LockHolder | None
    """Who holds it; when nobody does, who held it last and ended without letting go, as a killed process does.

    None: it was let go in order, there never was one, or it is being written just now.
    """


def read_lock(folder: Path) -> LockState:
    """Who runs in `folder`. Takes no lock and writes nothing, so it can disturb no run, however often it is called.

    Where the system does not answer (another machine, a file system without locks, neither Linux nor a kernel of 3.15)
    the heartbeat decides: a killed process then counts as alive for up to STALE_AFTER_S.
    """
    for _ in range(_READS):
        try:
            with (folder / FILE).open(encoding="utf-8", errors="replace") as file:
                step_ok, owner = _is_taken(file), _owner_in(file)
        except OSError:
            return LockState(False, None)
        if owner or not step_ok:  # else a heartbeat is being written
            break
        time.sleep(0.001)
    if not step_ok and owner:
        silent = time.time() - owner.beat > STALE_AFTER_S
        step_ok = not silent and (step_ok is None or not _is_here(owner))
    return LockState(bool(step_ok), owner)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Owns `folder` inside the block. Raises RunError naming the owner when another run is in it."""
    with os_error_as_run_error(folder / FILE):
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / FILE).open("a+", encoding="utf-8")
    with opened as file:
        previous = _owner_in(file)
        if not _take(file) or _alive_elsewhere(previous):
            raise RunError(_refusal(folder, previous))
        if previous:
            logger.warning(
                f"{folder}: stale lock of process {previous.pid} on {previous.host} removed (the process is gone)."
            )
        stop = threading.Event()
        beating = threading.Thread(target=_beat, args=(file, stop), daemon=True, name="run lock")
        _show(file)  # before the name: a name that nobody stands by is that of a killed process
        _write(file, _myself())
        beating.start()
        try:
            yield
        finally:
            stop.set()
            beating.join()
            file.seek(0)
            file.truncate()


def _take(file: IO[str]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: the heartbeat decides
    return True


def _alive_elsewhere(owner: LockHolder | None) -> bool:
    """Whether an owner whose lock this machine cannot see gave a sign of life lately."""
    if owner is None or time.time() - owner.beat > STALE_AFTER_S:
        return False
    return fcntl is None or not _is_here(owner)


def _is_here(owner: LockHolder) -> bool:
    """Whether an owner is, or was, on this machine."""
    # A container that was started again has another name on the same machine, a machine that was has another boot.
    myself = _myself()
    return owner.host == myself.host or (owner.boot != "" and owner.boot == myself.boot)


def _show(file: IO[str]) -> None:
    """Lets readers see that the file is locked. Where that does not work, the heartbeat tells them."""
    if hasattr(fcntl, "F_OFD_SETLK"):
        with suppress(OSError):
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, _write_lock())


def _is_taken(file: IO[str]) -> bool | None:
    """Whether an owner shows its lock on the file; None when the system does not tell."""
    if not hasattr(fcntl, "F_OFD_GETLK"):
        return None
    try:
        answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _write_lock())
    except OSError:
        return None
    return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)


def _write_lock() -> bytes:
    """A `struct flock` of Linux on 64 bits: a write lock on the whole file (length 0), by no process id."""
    return struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def _refusal(folder: Path, owner: LockHolder | None) -> str:
    who = f"process {owner.pid} on {owner.host}" if owner else "another process"
    return f"{folder}: {who} is running in this folder. Wait for it, stop it, or give the job another name."


def _beat(file: IO[str], stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        _write(file, _myself())


def _write(file: IO[str], owner: LockHolder) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(asdict(owner)))
    file.flush()


def _owner_in(file: IO[str]) -> LockHolder | None:
    file.seek(0)
    try:
        return LockHolder(**json.loads(file.read()))
    except (ValueError, TypeError):
        return None  # empty: the last run ended well; or half written


def _myself() -> LockHolder:
    return LockHolder(os.getpid(), socket.gethostname(), _boot_id(), time.time())


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
