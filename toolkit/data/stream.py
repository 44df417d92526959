"""Micro-batches from a stream of samples whose length nobody knows, such as the shards of a WebDataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from toolkit.data.dataloader import loaded_ahead
from toolkit.interfaces import Batch, BatchSpec, Cursor, MicroBatch


@dataclass(frozen=True)
class StreamSource:
    """A `BatchSource` that reads samples one after the other, and never again."""

    read: Callable[[Cursor], Iterator[tuple[Any, Cursor]]]
    """The samples from a cursor of the stream on (None: all), not yet decoded, each with the cursor behind it."""

    make_batch: Callable[[BatchSpec], Batch]
    """Decodes `BatchSpec.samples`; called by `workers` threads, or in this one with 0 of them."""

    batch_size: int
    workers: int = 0

    def iterate(self, cursor: Cursor) -> Iterator[MicroBatch]:
        """The cursor is the samples read and the stream's own cursor. A sample's number keys all its draws."""
        number, at = (cursor["samples"], cursor["stream"]) if cursor else (0, None)
        waiting: list[Any] = []
        for sample, behind in self.read(at):
            waiting.append(sample)
            at = behind
            if len(waiting) == self.batch_size:
                yield _micro_batch(number, waiting, at)
                number, waiting = number + len(waiting), []
        if waiting:
            yield _micro_batch(number, waiting, at)

    def load(self, specs: Iterable[BatchSpec]) -> Iterator[Batch]:
        return loaded_ahead(self.make_batch, specs, self.workers)


def _micro_batch(first: int, samples: list[Any], at: Cursor) -> MicroBatch:
    numbers = tuple(range(first, first + len(samples)))
    return MicroBatch(BatchSpec(0, numbers, numbers, tuple(samples)), {"samples": numbers[-1] + 1, "stream": at})
