"""Which micro-batches make up each optimizer step, and which rank computes which of
them.

The functions work on `BatchSpec`, not on images or tensors, so a plan can count the
steps of a run without loading anything. The samples of a step do not depend on the
number of ranks. Called by the loop, by `collectives`, and by the planner
(`toolkit.plan`), which needs the sizes of the pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from toolkit.contracts.data import BatchSpec, Cursor, MicroBatch
from toolkit.rounding import ceil_divide


@dataclass(frozen=True)
class AccumulationStep:
    """The micro-batches of one optimizer step (gradient accumulation).

    >>> spec = BatchSpec(0, items=(4, 7), positions=(0, 1))
    >>> AccumulationStep((spec,), cursor=None).sample_keys
    [(0, 0), (0, 1)]
    """

    specs: tuple[BatchSpec, ...]
    cursor: Cursor
    """Position of the source behind it, from which a resume continues."""

    epochs_ended: int = 0
    """Epochs that end with one of these micro-batches."""

    @property
    def samples(self) -> int:
        """Number of samples, over which the gradient is averaged."""
        return sum(len(spec.items) for spec in self.specs)

    @property
    def sample_keys(self) -> list[tuple[int, int]]:
        """(epoch, position) of each sample, in order."""
        return [
            (spec.epoch, position) for spec in self.specs for position in spec.positions
        ]


def accumulation_steps(
    micro_batches: Iterable[MicroBatch], grad_accum_steps: int
) -> Iterator[AccumulationStep]:
    """Accumulation steps of `grad_accum_steps` micro-batches, across epochs; the last
    one may be shorter."""
    remaining = iter(micro_batches)
    while group := list(islice(remaining, grad_accum_steps)):
        specs = tuple(micro_batch.spec for micro_batch in group)
        yield AccumulationStep(
            specs,
            group[-1].cursor,
            sum(micro_batch.ends_epoch for micro_batch in group),
        )


def shard_micro_batches(
    specs: Sequence[BatchSpec], rank: int, size: int
) -> tuple[BatchSpec, ...]:
    """The micro-batches of an accumulation step that rank `rank` of `size` computes:
    every `size`-th one.

    With fewer micro-batches than ranks they are split first. So the samples of a step
    do not depend on the number of ranks.
    """
    count = splits_per_micro_batch(len(specs), size)
    return tuple(piece for spec in specs for piece in split_spec(spec, count))[
        rank::size
    ]


def splits_per_micro_batch(micro_batches: int, processes: int) -> int:
    """Number of pieces that each micro-batch is split into, so that every rank has one.
    1 where there are at least as many micro-batches as processes.

    >>> splits_per_micro_batch(2, processes=8), splits_per_micro_batch(4, processes=2)
    (4, 1)
    """
    return ceil_divide(processes, micro_batches)


def split_spec(spec: BatchSpec, count: int) -> list[BatchSpec]:
    """A micro-batch in `count` pieces of almost equal size, in order, the last one
    among the largest; fewer when it has fewer samples.

    >>> spec = BatchSpec(0, items=(4, 7, 9), positions=(0, 1, 2))
    >>> [piece.items for piece in split_spec(spec, 2)]
    [(4,), (7, 9)]
    """
    count = min(count, len(spec.items))
    edges = [len(spec.items) * index // count for index in range(count + 1)]
    return [spec.select(range(a, b)) for a, b in pairwise(edges)]
