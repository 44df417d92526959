"""Which micro-batches make up each optimizer step, and who of several processes computes which of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from toolkit.interfaces import BatchSpec, Cursor, MicroBatch


@dataclass(frozen=True)
class AccumulationStep:
    """The micro-batches of one optimizer step (gradient accumulation)."""

    specs: tuple[BatchSpec, ...]
    cursor: Cursor
    """Where the source goes on behind it."""

    epochs_ended: int = 0
    """Epochs whose last micro-batch is among them."""

    @property
    def samples(self) -> int:
        """Samples in the accumulation step, over which the gradient is averaged."""
        return sum(len(spec.items) for spec in self.specs)

    @property
    def sample_keys(self) -> list[tuple[int, int]]:
        """(epoch, position) of each sample, in order."""
        return [(spec.epoch, position) for spec in self.specs for position in spec.positions]


def accumulation_steps(micro_batches: Iterable[MicroBatch], grad_accum_steps: int) -> Iterator[AccumulationStep]:
    """Accumulation steps of `accumulation` micro-batches, across epochs; where the source ends the last one is
    short.
    """
    remaining = iter(micro_batches)
    while chosen := list(islice(remaining, grad_accum_steps)):
        specs = tuple(micro_batch.spec for micro_batch in chosen)
        yield AccumulationStep(specs, chosen[-1].cursor, sum(micro_batch.ends_epoch for micro_batch in chosen))


def shard_micro_batches(specs: Sequence[BatchSpec], rank: int, size: int) -> tuple[BatchSpec, ...]:
    """What process `rank` of `size` computes of an accumulation step: every `size`-th micro-batch.

    An accumulation step of fewer micro-batches than processes has them cut into parts first. So which samples a step
    learns from does not depend on the number of processes.
    """
    count = splits_per_micro_batch(len(specs), size)
    return tuple(part for spec in specs for part in split_spec(spec, count))[rank::size]


def splits_per_micro_batch(micro_batches: int, processes: int) -> int:
    """Parts into which each micro-batch of an accumulation step is cut, so that there is one for each process."""
    return -(-processes // micro_batches)


def split_spec(spec: BatchSpec, count: int) -> list[BatchSpec]:
    """A micro-batch in `count` parts of almost equal size, in order, the last of the largest; fewer when it has fewer
    samples."""
    count = min(count, len(spec.items))
    edges = [len(spec.items) * part // count for part in range(count + 1)]
    return [spec.select(range(a, b)) for a, b in pairwise(edges)]
