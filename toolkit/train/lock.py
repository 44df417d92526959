"""One run at a time in a folder: a lock file that is locked while its run lives.

The operating system releases the lock when the process dies, however it dies, so a file
that can be locked has no owner. On a network volume locks of other machines may be
invisible: there the owner's heartbeat counts. The file is watched until its owner
writes a new one, or has been silent for three minutes by the clocks of both machines: a
run whose machine was lost goes on elsewhere without anybody's help. At least two and a
half heartbeats are watched, because the owner's clock may be behind.

The owner holds two locks on the file. `flock` decides who may run. A reader cannot
query it without taking it for a moment, and a run that starts in that moment would be
refused. So the owner also holds a write lock of its open file description
(F_OFD_SETLK): it can be queried (F_OFD_GETLK) without being taken, with a file that is
open for reading only, from any container on the machine. The alternatives do not work:
/proc/locks leaves out processes of other containers and names the devices of some file
systems otherwise than `stat`; a process id may belong to another process by now; locks
of a process (F_SETLK) vanish when any part of it closes the file.

`jobs.process.trainer` takes the lock of a run; `run_reader` queries it.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from toolkit.errors import RunError
from toolkit.files.writing import open_regular, os_error_as_run_error, short

logger = logging.getLogger(__name__)

try:
    import fcntl
except ImportError:  # Windows: the heartbeat alone decides
    fcntl = None  # type: ignore[assignment]  # Windows has none

FILE = "run.lock"
HEARTBEAT_S = 30.0
STALE_AFTER_S = 180.0
"""Seconds without a heartbeat after which an owner on another machine may be dead."""

WATCHES = 75
"""Looks at the file of such an owner, at least, before it counts as dead."""

WATCH_EVERY_S = HEARTBEAT_S / 30
"""Seconds between two of these: in all two and a half heartbeats."""

_WRITE_LOCK = struct.pack(
    "hhqqi4x", fcntl.F_WRLCK if fcntl else 0, os.SEEK_SET, 0, 0, 0
)
"""A `struct flock` of 64-bit Linux: a write lock on the whole file (length 0), without
a process id."""

_READS = 20
"""Attempts to read a file while its owner is being written, a millisecond apart."""


@dataclass(frozen=True)
class LockHolder:
    """The process that runs in a folder.

    Example::

        owner = read_lock(folder).owner
        if owner:
            print(f"process {owner.pid} on {owner.host}")
    """

    pid: int
    host: str
    boot: str
    """Boot id of the machine; empty where the system has none."""

    beat: float
    """Unix time of the last heartbeat."""


@dataclass(frozen=True)
class LockState:
    """The result of `read_lock`.

    >>> read_lock(Path("output/of_nobody"))
    LockState(held=False, owner=None)
    """

    held: bool
    """Whether a live process runs in the folder."""

    owner: LockHolder | None
    """The holder; where nobody holds it, the last holder if it died without releasing
    it, as a killed process does.

    None: it was released, never taken, or is being written at the moment.
    """


def read_lock(folder: Path) -> LockState:
    """Who runs in `folder`. Takes no lock and writes nothing, so it cannot disturb a
    run.

    Where locks cannot be queried (another machine, a file system without locks, no
    Linux 3.15 or later) the age of the heartbeat decides, by the clocks of both
    machines: a killed process then counts as alive for up to STALE_AFTER_S.
    """
    for _ in range(_READS):
        try:
            with _opened(folder / FILE) as file:
                taken = _is_taken(file)
                owner = _owner_in(file)
        except OSError:
            return LockState(False, None)
        if owner or not taken:  # else a heartbeat is being written
            break
        time.sleep(0.001)
    if not taken and owner:
        silent = time.time() - owner.beat > STALE_AFTER_S
        taken = not silent and (taken is None or not _is_here(owner))
    return LockState(bool(taken), owner)


@contextmanager
def run_lock(folder: Path, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Owns `folder` inside the block. Raises RunError naming the owner when another run
    is in it.

    check: called every second while an owner on another machine is watched; what it
    raises ends the wait.
    """
    with os_error_as_run_error(folder / FILE):
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / FILE).open("a+", encoding="utf-8")
    with opened as file:
        previous = _owner_in(file)
        locked = _try_flock(file)
        # An owner whose lock cannot be seen is alive where it writes.
        unseen = (
            previous
            if previous and (locked is None or not _is_here(previous))
            else None
        )
        if locked is False or (unseen and _writes(folder, unseen, check)):
            raise RunError(why_locked(folder, previous))
        if previous:
            logger.warning(
                f"{short(folder)}: stale lock of process {previous.pid} on {previous.host} removed "
                "(the process is gone)."
            )
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_S):
                _write(file, _myself())

        beating = threading.Thread(target=beat, daemon=True, name="run lock")
        # The lock that readers can query, before the owner is written: an owner without
        # a lock is taken for a killed process. Where it is impossible they rely on the
        # heartbeat.
        if hasattr(fcntl, "F_OFD_SETLK"):
            with suppress(OSError):
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, _WRITE_LOCK)
        _write(file, _myself())
        beating.start()
        try:
            yield
        finally:
            stop.set()
            beating.join()
            file.seek(0)
            file.truncate()


def _opened(path: Path) -> IO[str]:
    return io.TextIOWrapper(open_regular(path), encoding="utf-8", errors="replace")


def _try_flock(file: IO[str]) -> bool | None:
    """Whether the file is locked now; None where the system or the file system has no
    locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _writes(folder: Path, owner: LockHolder, check: Callable[[], None]) -> bool:
    """Whether the owner, or one that comes after it, writes a heartbeat while the file
    is watched."""
    # With an owner whose clock is ahead it would be longer than STALE_AFTER_S.
    until_stale = min(STALE_AFTER_S, STALE_AFTER_S - (time.time() - owner.beat))
    watches = max(WATCHES, math.ceil(until_stale))
    logger.info(
        f"{short(folder)}: process {owner.pid} on {owner.host} was running here, and its lock cannot be seen. "
        f"Watching for a sign of life for {watches * WATCH_EVERY_S:.0f} s."
    )
    for _ in range(watches):
        time.sleep(WATCH_EVERY_S)
        check()
        now = _owner_of(folder)
        if now != owner:
            return now is not None
    return False


def _owner_of(folder: Path) -> LockHolder | None:
    """The owner in the file as it is now: a network file system may show an open one as
    it was."""
    owner = None
    for _ in range(_READS):
        with suppress(OSError), _opened(folder / FILE) as file:
            owner = _owner_in(file)
        if owner:  # else a heartbeat is being written, or it was released
            break
        time.sleep(0.001)
    return owner


def _is_here(owner: LockHolder) -> bool:
    """Whether an owner runs, or ran, on this machine."""
    # A restarted container has another host name on the same machine; a restarted
    # machine has another boot id.
    myself = _myself()
    return owner.host == myself.host or (owner.boot != "" and owner.boot == myself.boot)


def _is_taken(file: IO[str]) -> bool | None:
    """Whether an owner holds the lock that can be queried; None where the system does
    not tell."""
    if not hasattr(fcntl, "F_OFD_GETLK"):
        return None
    try:
        answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _WRITE_LOCK)
    except OSError:
        return None
    return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)


def why_locked(folder: Path, owner: LockHolder | None) -> str:
    """Why a run is refused in a folder that another process holds."""
    who = f"process {owner.pid} on {owner.host}" if owner else "another process"
    return f"{short(folder)}: {who} is running in this folder. Wait for it, stop it, or give the job another name."


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
        return None  # empty after a clean end, or half written


def _myself() -> LockHolder:
    return LockHolder(os.getpid(), socket.gethostname(), boot_id(), time.time())


def boot_id() -> str:
    """Identifies this start of the machine, by the random UUID of the Linux kernel;
    empty where the system has none."""
    try:
        return (
            Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        )
    except OSError:
        return ""
