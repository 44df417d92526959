"""Counters of the system that explain a slow training step: swapped memory, waiting
for a CPU, the GPU's clock, its memory.

Reading takes less than a millisecond and does not wait for a device. A value that
cannot be read is 0 or empty. This module does not judge the values:
`toolkit.train.anomalies` compares them between steps. Called by
`toolkit.train.callbacks.anomalies`.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from toolkit.system.nvidia import gpu_clock


@dataclass(frozen=True)
class Reading:
    """Counters since the start of the process, and states of this moment.

    Example::

        before = read_machine(device)
        run_steps()
        swapped_in = read_machine(device).faults - before.faults
    """

    faults: int = 0
    """Page faults of this process that had to read from a disk (Linux)."""

    swapped: int = 0
    """Bytes of this process in swap (Linux)."""

    cpu_s: float = 0.0
    """Seconds of CPU time of this process where it trains on the CPU, else 0: waiting
    for a GPU would count as well."""

    cpu_wait_s: float = 0.0
    """Seconds that the main thread could have run and got no CPU (Linux)."""

    alloc_retries: int = 0
    """How often PyTorch had to free its cached GPU memory to allocate more."""

    gpu_free: float = 1.0
    """Share of the GPU's memory that is free, by its driver."""

    gpu_shares: bool = False
    """Whether the driver moves data to the system's memory when the GPU is full: on
    Windows and WSL."""

    clock_mhz: int = 0
    """Clock of the GPU's multiprocessors."""

    throttled: tuple[str, ...] = ()
    """Reasons for which the GPU runs at a lower clock than it could."""


def read_machine(device: torch.device) -> Reading:
    """The reading of this moment. device: the device that trains."""
    faults, swapped, cpu_wait_s = _of_process()
    if device.type != "cuda":
        return Reading(faults, swapped, time.process_time(), cpu_wait_s)
    free, total = torch.cuda.mem_get_info(device)
    retries = torch.cuda.memory_stats(device).get("num_alloc_retries", 0)
    clock = gpu_clock(f"cuda:{device.index or 0}")
    return Reading(
        faults,
        swapped,
        0.0,
        cpu_wait_s,
        retries,
        free / total,
        _shares_gpu_memory(),
        *clock,
    )


def _of_process(proc: Path = Path("/proc")) -> tuple[int, int, float]:
    """`faults`, `swapped` and `cpu_wait_s`. Source: proc(5), `stat`, `status` and
    `schedstat`."""

    def number(name: str, behind: str, index: int) -> int:
        """A number of a file, by its place behind the last such text; 0 where it cannot
        be read."""
        with suppress(OSError, ValueError, IndexError):
            text = (proc / "self" / name).read_text(encoding="utf-8", errors="replace")
            rest = text.rpartition(behind)[2] if behind else text
            return int(rest.split()[index])
        return 0

    # the name of the program may contain spaces and parentheses
    faults = number("stat", ")", 9)
    return (
        faults,
        1024 * number("status", "VmSwap:", 0),
        number("schedstat", "", 1) / 1e9,
    )


@cache
def _shares_gpu_memory() -> bool:
    if sys.platform == "win32":
        return True
    with suppress(OSError):
        return (
            "microsoft"
            in Path("/proc/version")
            .read_text(encoding="utf-8", errors="replace")
            .lower()
        )
    return False
