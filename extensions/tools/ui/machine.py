"""The state of the machine for the bar at the bottom of every page.

It says how busy the GPUs are, how much main memory is free, and which jobs of the queue
run and wait. Nothing is changed, and the GPUs are asked through NVML, not torch.

`extensions.tools.ui.app` gives the result of `look` to the templates. The page about the
system asks for `main_memory` (`extensions.tools.ui.views.system`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from extensions.tools.ui.config import queue_folder
from extensions.tools.ui.queue import RUNNING, WAITING, Queue
from toolkit.system.host_memory import free_host_memory
from toolkit.system.nvidia import Gpu, ask_nvml

LOOK_S = 2.0
"""Seconds after which the machine is asked again. Every page has the bar, so a state is
used for several of them."""


class Machine(NamedTuple):
    """The state of the machine at one moment.

    >>> machine = Machine((), 8 * 10**9, 16 * 10**9, ("cat",), 2)
    >>> machine.running, machine.waiting
    (('cat',), 2)
    """

    gpus: tuple[Gpu, ...]
    """Empty: the driver reports none."""

    memory_free: int
    """Bytes that a process can take. 0: unknown."""

    memory: int
    """Bytes of main memory. 0: unknown."""

    running: tuple[str, ...]
    """Names of the queue's jobs that run."""

    waiting: int
    """Number of the queue's jobs that wait."""


def look(output: Path) -> Machine:
    """The state now: asks the driver, the system and the queue. output: the folder of the runs."""
    entries = Queue(queue_folder(output)).now()
    running = tuple(entry.name for entry in entries if entry.state == RUNNING)
    waiting = sum(entry.state == WAITING for entry in entries)
    return Machine(
        tuple(ask_nvml()[1]), free_host_memory(), main_memory(), running, waiting
    )


def main_memory() -> int:
    """Bytes of main memory. 0: the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
