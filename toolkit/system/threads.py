"""How many threads PyTorch computes with on a CPU.

Its threads wait for each other in loops: where other programs use the cores, each waits
for one that does not run, and a step takes many times as long as on one thread. So
their number follows from the load at the start and from the times of the first steps,
unless a variable of the environment says it."""

from __future__ import annotations

import math
import os
import sys
from statistics import median

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""With one of these the user says how many threads there are."""

TRIED_STEPS = 3
"""Steps whose median is the time of a number of threads; the one before them is left
out, as threads start in it."""

GAIN = 0.9
"""More threads are taken where a step takes at most this share of its time with
fewer."""

MOST = 1.5
"""As many times the time of one thread a step may take before one thread is tried
again."""


def is_given() -> bool:
    """Whether the environment says the number of threads."""
    return any(os.environ.get(name) for name in VARIABLES)


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_cores() -> int:
    """Those that the load of the last minute leaves; at least one."""
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # not on this system
        return usable_cores()
    return max(1, usable_cores() - round(load))


def use_free_cores() -> None:
    """Has PyTorch compute with as many threads as cores are free, where it has been
    imported, there is no GPU, and the environment does not say it."""
    torch = sys.modules.get("torch")
    if torch is not None and not is_given() and not torch.cuda.is_available():
        torch.set_num_threads(free_cores())


class ThreadChoice:
    """Finds the number of threads with which steps are fastest, and goes back to one
    where they no longer are.

    It begins with one thread and doubles while that pays. Each number is tried for a
    few steps, and given up at the first that takes more than twice as long as with
    fewer threads: no more is lost on a busy machine.
    """

    def __init__(self, cores: int) -> None:
        self.threads = 1
        self._fewer = 1
        """What was tried before `threads`."""

        self._waiting = [
            *(2**power for power in range(1, 10) if 2**power < cores),
            *([cores] if cores > 1 else []),
        ]
        self._medians: dict[int, float] = {}
        self._times: list[float] = []
        self._next = self._try_more if cores > 1 else self._stay

    @property
    def is_made(self) -> bool:
        """Whether no other number is being tried for the first time."""
        return self._next != self._try_more

    def observe(self, seconds: float) -> str:
        """Takes the time of a step with `threads`, which may change. Returns a line
        where the choice is made, or changed; empty otherwise."""
        self._times.append(seconds)
        return self._next()

    def _stay(self) -> str:
        self._times.clear()
        return ""

    def _try_more(self) -> str:
        fewer = self._medians.get(self._fewer, math.inf)
        if len(self._times) <= TRIED_STEPS and self._times[-1] <= 2 * fewer:
            return ""
        now = self._medians[self.threads] = self._median()
        if now < GAIN * fewer and self._waiting:
            self._fewer, self.threads = self.threads, self._waiting.pop(0)
            return ""
        if now >= GAIN * fewer:
            self.threads = self._fewer
        self._next = self._watch if self.threads > 1 else self._stay
        shown = ", ".join(
            f"{seconds:.3g} s with {count}" for count, seconds in self._medians.items()
        )
        return f"{_named(self.threads)} of the CPU: a step takes {shown}"

    def _watch(self) -> str:
        """Tries one thread where the last steps took longer than steps with one."""
        del self._times[:-TRIED_STEPS]
        now = median(self._times)
        alone = self._medians[1]
        if len(self._times) < TRIED_STEPS or now <= MOST * alone:
            return ""
        self._medians[self.threads], self._times = now, []
        self._fewer = self.threads
        self.threads = 1
        self._next = self._try_one
        return ""

    def _try_one(self) -> str:
        """Keeps one thread where it is faster; else the steps have become longer, with
        any number of threads."""
        if len(self._times) <= TRIED_STEPS:
            return ""
        many = self._fewer
        before = self._medians[self._fewer]
        now = self._medians[1] = self._median()
        if now >= GAIN * before:
            self.threads = many
            self._next = self._watch
            return ""
        self._next = self._stay
        return f"1 thread of the CPU from here on: a step takes {now:.3g} s with 1, and took {before:.3g} s with {many}"

    def _median(self) -> float:
        """The time of a step with `threads`, without the first one; the times begin
        again."""
        times = self._times[1:] or self._times
        self._times = []
        return median(times)


def _named(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
