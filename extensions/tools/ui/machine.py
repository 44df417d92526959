"""What the bar at the bottom of every page says: the GPU, the main memory, the queue.
Imports no torch."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from extensions.tools.ui.config import queue_folder
from extensions.tools.ui.queue import RUNNING, WAITING, Queue
from toolkit.system.host_memory import free_host_memory
from toolkit.system.nvidia import Gpu, ask_nvml

LOOK_S = 2.0
"""Seconds for which a look is good enough: every page has the bar."""


class Machine(NamedTuple):
    """The machine at one moment."""

    gpus: tuple[Gpu, ...]
    """Empty: the driver has none."""

    memory_free: int
    """Bytes that a process can take; 0: not known."""

    memory: int
    """Bytes of main memory; 0: not known."""

    running: tuple[str, ...]
    """Names of the jobs of the queue that run."""

    waiting: int
    """Jobs of the queue that wait."""


def machine_now(output: Path, kept: dict[Any, Any]) -> Machine:
    """The machine, looked at no more than LOOK_S ago. output: the folder of the runs.
    kept: where the look stays."""
    looked, found = kept.get("machine_look", (-LOOK_S, None))
    if found is None or time.monotonic() - looked > LOOK_S:
        found = look(output)
        kept["machine_look"] = time.monotonic(), found
    assert isinstance(found, Machine)
    return found


def look(output: Path) -> Machine:
    """The machine now."""
    entries = Queue(queue_folder(output)).entries()
    running = tuple(entry.name for entry in entries if entry.state == RUNNING)
    waiting = sum(entry.state == WAITING for entry in entries)
    return Machine(
        tuple(ask_nvml()[1]), free_host_memory(), main_memory(), running, waiting
    )


def main_memory() -> int:
    """Bytes of main memory; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
