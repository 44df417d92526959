"""Which micro-batches make up each optimizer step, and who of several processes computes which of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from toolkit.contracts import BatchSpec, Cursor, MicroBatch


@dataclass(frozen=True)
class Window:
    """The micro-batches of one optimizer step."""

    specs: tuple[BatchSpec, ...]
    cursor: Cursor
    """Where the source goes on behind it."""

    epochs_ended: int = 0
    """Epochs whose last micro-batch is among them."""

    @property
    def samples(self) -> int:
        """Samples in the window, over which the gradient is averaged."""
        return sum(len(spec.items) for spec in self.specs)

    @property
    def uses(self) -> list[tuple[int, int]]:
        """(epoch, position) of each sample, in order."""
        return [(spec.epoch, position) for spec in self.specs for position in spec.positions]


def windows(micro_batches: Iterable[MicroBatch], accumulation: int) -> Iterator[Window]:
    """Windows of `accumulation` micro-batches, across epochs; where the source ends the last one is short."""
    remaining = iter(micro_batches)
    while chosen := list(islice(remaining, accumulation)):
        specs = tuple(micro_batch.spec for micro_batch in chosen)
        yield Window(specs, chosen[-1].cursor, sum(micro_batch.ends_epoch for micro_batch in chosen))


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
    return [spec.select(range(a, b)) for a, b in pairwise(edges)]
