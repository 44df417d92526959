"""Which micro-batches make up each optimizer step: a pure function of the cursor, so a resume is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from toolkit.contracts import BatchSpec

EpochBatches = Callable[[int], list[BatchSpec]]
"""The micro-batches of an epoch, in order."""


@dataclass(frozen=True)
class Window:
    """The micro-batches of one optimizer step."""

    specs: tuple[BatchSpec, ...]
    epoch: int
    """Where the cursor stands after the window: the epoch of the next micro-batch ..."""

    batch: int
    """... and its index there."""

    @property
    def samples(self) -> int:
        """Samples in the window, over which the gradient is averaged."""
        return sum(len(spec.items) for spec in self.specs)

    @property
    def uses(self) -> list[tuple[int, int]]:
        """(epoch, position) of each sample, in order."""
        return [(spec.epoch, position) for spec in self.specs for position in spec.positions]


def windows(epoch_batches: EpochBatches, epoch: int, batch: int, accumulation: int) -> Iterator[Window]:
    """Windows of `accumulation` micro-batches for ever, from the cursor on; they run on across epochs."""
    specs = epoch_batches(epoch)
    while True:
        chosen: list[BatchSpec] = []
        while len(chosen) < accumulation:
            if batch >= len(specs):
                epoch, batch = epoch + 1, 0
                specs = epoch_batches(epoch)
            chosen.append(specs[batch])
            batch += 1
        yield Window(tuple(chosen), epoch, batch)


def dealt(specs: Sequence[BatchSpec], rank: int, size: int) -> tuple[BatchSpec, ...]:
    """What process `rank` of `size` computes of a window: every `size`-th micro-batch.

    A window of fewer micro-batches than processes has them cut into parts first. So which samples a step learns from
    does not depend on the number of processes.
    """
    count = cut_into(len(specs), size)
    return tuple(part for spec in specs for part in parts(spec, count))[rank::size]


def cut_into(micro_batches: int, processes: int) -> int:
    """Parts into which each micro-batch of a window is cut, so that there is one for each process."""
    return -(-processes // micro_batches)


def parts(spec: BatchSpec, count: int) -> list[BatchSpec]:
    """A micro-batch in `count` parts of almost equal size, in order, the last of the largest; fewer when it has fewer
    samples."""
    count = min(count, len(spec.items))
    edges = [len(spec.items) * part // count for part in range(count + 1)]
    return [BatchSpec(spec.epoch, spec.items[a:b], spec.positions[a:b]) for a, b in pairwise(edges)]
