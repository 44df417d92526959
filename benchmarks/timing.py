"""Times variants of the same work on a machine that others use too.

The variants take turns step by step, so that a slow minute meets all of them alike.
Both wall and CPU time of the process are kept: on one thread they agree unless
something else held the core. A round in which they do not is taken again; when too few
quiet rounds can be had, there is no report.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

MOST_WALL_PER_CPU = 1.15
"""A round whose wall time exceeds its CPU time by more was disturbed."""

TRIES = 3
"""Rounds that are tried for each one that is wanted."""


@dataclass
class Times:
    """Seconds of each timed call of one variant."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, other: Times) -> None:
        self.wall += other.wall
        self.cpu += other.cpu

    def summary(self) -> dict[str, float]:
        """Milliseconds."""
        return {
            "wall_min_ms": 1e3 * min(self.wall),
            "wall_median_ms": 1e3 * median(self.wall),
            "cpu_min_ms": 1e3 * min(self.cpu),
            "cpu_median_ms": 1e3 * median(self.cpu),
        }


class Disturbed(SystemExit):
    """Other work held the processor while the bench ran."""


def one_thread() -> None:
    """Torch computes in this thread alone from now on: wall and CPU time can then be
    compared."""
    import torch

    torch.set_num_threads(1)


@dataclass
class Rounds:
    """The times of all variants, by name, and how quiet the machine was."""

    times: dict[str, Times]
    disturbed: int = 0
    """Rounds that were taken again, or with `noisy` kept."""

    @property
    def wall_per_cpu(self) -> float:
        """Of everything that was kept; about 1 on one thread that nobody disturbs."""
        return sum(sum(t.wall) for t in self.times.values()) / sum(
            sum(t.cpu) for t in self.times.values()
        )

    def facts(self) -> dict[str, float]:
        return {"wall_per_cpu": self.wall_per_cpu, "disturbed_rounds": self.disturbed}

    def __str__(self) -> str:
        kept = len(next(iter(self.times.values())).wall)
        return f"{kept} rounds kept, {self.disturbed} disturbed; wall / CPU {self.wall_per_cpu:.3f}"


def interleave(
    variants: Mapping[str, Callable[[], object]],
    warm_up: int,
    rounds: int,
    noisy: bool = False,
) -> Rounds:
    """Calls each variant once per round: `warm_up` untimed rounds, then until `rounds`
    of them were quiet.

    Raises Disturbed when they are not to be had; with `noisy` every round counts.
    """
    for _ in range(warm_up):
        for work in variants.values():
            work()
    kept = Rounds({name: Times() for name in variants})
    for _ in range(rounds if noisy else TRIES * rounds):
        one = Rounds({name: timed(work) for name, work in variants.items()})
        quiet = one.wall_per_cpu <= MOST_WALL_PER_CPU
        kept.disturbed += not quiet
        if quiet or noisy:
            for name, times in one.times.items():
                kept.times[name].add(times)
        if len(next(iter(kept.times.values())).wall) == rounds:
            return kept
        if kept.disturbed > (TRIES - 1) * rounds and not noisy:
            break
    raise Disturbed(
        f"refused: in {kept.disturbed} rounds wall time was more than {MOST_WALL_PER_CPU} x CPU time: other work held "
        "the processor. Run it again when the machine is idle, or accept the noise with --noisy."
    )


def timed(work: Callable[[], object]) -> Times:
    """One call of `work`; garbage of the variants before it is none of its business."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Times([time.perf_counter() - wall], [time.process_time() - cpu])


def table(times: Mapping[str, Times]) -> str:
    """Minimum and median of wall and CPU time of each variant, milliseconds."""
    width = max(12, *map(len, times))
    lines = [
        f"{'ms per call':<{width}}  {'wall min':>9} {'median':>9}  {'CPU min':>9} {'median':>9}"
    ]
    for name, t in times.items():
        wall_min, wall_median, cpu_min, cpu_median = t.summary().values()
        lines.append(
            f"{name:<{width}}  {wall_min:9.2f} {wall_median:9.2f}  {cpu_min:9.2f} {cpu_median:9.2f}"
        )
    return "\n".join(lines)


def ratio(a: Times, b: Times) -> dict[str, float]:
    """a / b of minima and medians. The minimum of CPU time is the one least touched by
    other work."""
    ours, theirs = a.summary(), b.summary()
    return {name.removesuffix("_ms"): ours[name] / theirs[name] for name in ours}
