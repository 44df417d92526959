"""One run at a time in a folder: an owner file that is locked while its run lives.

The operating system drops the lock when the process dies, however it dies, so a file that can be locked belongs to
nobody. On a network volume locks of other machines may not be seen: there the owner's heartbeat counts, and an owner
that has been silent for three minutes is gone.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from toolkit.errors import RunError
from toolkit.files import naming_failures

try:
    import fcntl
except ImportError:  # Windows: the heartbeat alone decides
    fcntl = None

FILE = "run.lock"
BEAT_S = 30.0
SILENT_S = 180.0
"""Seconds without a heartbeat after which an owner on another machine counts as gone."""


@dataclass(frozen=True)
class Owner:
    """Who runs in a folder."""

    pid: int
    host: str
    boot: str
    """Changes when the machine starts anew; empty where the system does not tell."""

    beat: float
    """Unix time of the last sign of life."""


@contextmanager
def locked(folder: Path, note: Callable[[str], None] = print) -> Iterator[None]:
    """Owns `folder` inside the block. Raises RunError naming the owner when another run is in it."""
    with naming_failures(folder / FILE):
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / FILE).open("a+", encoding="utf-8")
    with opened as file:
        previous = _owner_in(file)
        if not _take(file) or _alive_elsewhere(previous):
            raise RunError(_refusal(folder, previous))
        if previous:
            note(f"{folder}: a run of process {previous.pid} on {previous.host} ended without a word; taken over.")
        stop = threading.Event()
        beating = threading.Thread(target=_beat, args=(file, stop), daemon=True, name="run lock")
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


def _alive_elsewhere(owner: Owner | None) -> bool:
    """Whether an owner whose lock this machine cannot see gave a sign of life lately."""
    if owner is None or time.time() - owner.beat > SILENT_S:
        return False
    # A container that was started again has another name on the same machine, a machine that was has another boot.
    myself = _myself()
    is_here = owner.host == myself.host or (owner.boot and owner.boot == myself.boot)
    return fcntl is None or not is_here


def _refusal(folder: Path, owner: Owner | None) -> str:
    who = f"process {owner.pid} on {owner.host}" if owner else "another process"
    return f"{folder}: {who} is running in this folder. Wait for it, stop it, or give the job another name."


def _beat(file: IO[str], stop: threading.Event) -> None:
    while not stop.wait(BEAT_S):
        _write(file, _myself())


def _write(file: IO[str], owner: Owner) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(asdict(owner)))
    file.flush()


def _owner_in(file: IO[str]) -> Owner | None:
    file.seek(0)
    try:
        return Owner(**json.loads(file.read()))
    except (ValueError, TypeError):
        return None  # empty: the last run ended well; or half written


def _myself() -> Owner:
    return Owner(os.getpid(), socket.gethostname(), _boot_id(), time.time())


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
