"""How many threads PyTorch computes with on a CPU.

Its threads wait for each other in loops. Where other programs use the cores, each
thread waits for one that does not run, and a step takes many times the time of one
thread. So the number of threads follows from the load at the start and from the times
of the first steps, unless a variable of the environment sets it.

`run` calls `use_free_cores` at the start. `jobs.process.trainer` makes a `ThreadChoice`
for a training on the CPU; the callback `toolkit.train.callbacks.threads` passes it the
times of steps and sets the number that it chooses. Nothing here times a step.
"""

from __future__ import annotations

import math
import os
import sys
from statistics import median

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables with which the user sets the number of threads."""

TRIED_STEPS = 3
"""Steps whose median is the time of a number of threads. The step before them is left
out, because threads start in it."""

GAIN = 0.9
"""More threads are taken where a step takes at most this share of its time with
fewer."""

MOST = 1.5
"""One thread is tried again once a step takes more than this multiple of the time that
it takes with one thread."""


def is_given() -> bool:
    """Whether the environment sets the number of threads."""
    return any(os.environ.get(name) for name in VARIABLES)


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_cores() -> int:
    """Cores that the load of the last minute leaves free; at least one."""
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # not on this system
        return usable_cores()
    return max(1, usable_cores() - round(load))


def use_free_cores() -> None:
    """Sets PyTorch's number of threads to the number of free cores.

    It does so only where torch has been imported, no GPU is usable, and the environment
    does not set the number."""
    torch = sys.modules.get("torch")
    if torch is not None and not is_given() and not torch.cuda.is_available():
        torch.set_num_threads(free_cores())


class ThreadChoice:
    """Finds the number of threads with which steps are fastest, and goes back to one
    where they no longer are.

    It begins with one thread and doubles the number while that pays. Each number is
    tried for a few steps. It is given up at the first step that takes more than twice
    the time with fewer threads, so that a busy machine loses no more than that.

    >>> choice = ThreadChoice(cores=2)
    >>> times = [1.0, 1.0, 1.0, 1.0, 0.6, 0.6, 0.6, 0.6]
    >>> [line for line in map(choice.observe, times) if line]
    ['2 threads of the CPU: a step takes 1 s with 1, 0.6 s with 2']
    """

    def __init__(self, cores: int) -> None:
        self.threads = 1
        self._fewer = 1
        """The number that was tried before `threads`."""

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
        """Takes the time of a step with `threads`, and may change `threads`. Returns a
        line for the log where the choice is made or changed, else an empty text.

        seconds: of the step."""
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
        """Keeps one thread where it is faster. Otherwise the steps themselves have
        become longer, with any number of threads."""
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
        """The time of a step with `threads`, without the first step. Clears the
        times."""
        times = self._times[1:] or self._times
        self._times = []
        return median(times)


def _named(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
