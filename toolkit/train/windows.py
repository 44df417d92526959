"""Which micro-batches make up each optimizer step: a pure function of the cursor, so a resume is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
