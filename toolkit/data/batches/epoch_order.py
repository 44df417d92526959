"""The order and the batches of an epoch: pure functions of (seed, epoch).

The global order over single uses of images is chosen first; batches are formed along
it. So the position of a use, which keys all its random numbers, does not depend on the
batch size. Trainers call `epoch_batches` through an `EpochSource`, the plan
`count_batches`. No image is loaded here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from toolkit.contracts.data import (
    Batch,
    BatchSpec,
    BucketedSample,
    Cursor,
    MicroBatch,
    Size,
)
from toolkit.rounding import ceil_divide
from toolkit.system import seeding

CHUNK = 50
"""Micro-batches of a bucket that are sorted by length together. Source: transformers,
`LengthGroupedSampler`."""

WORDS = re.compile(r"\w+|[^\w\s]")


def epoch_order(items: Sequence[BucketedSample], seed: int, epoch: int) -> list[int]:
    """Index of the item at each position of the epoch; each item exactly `repeats`
    times."""
    # Sorting by a hash depends on no library's shuffle, so an order never changes with
    # a version.
    uses = [
        (seeding.key(seed, "order", epoch, index, repeat), index)
        for index, item in enumerate(items)
        for repeat in range(item.sample.repeats)
    ]
    return [index for _, index in sorted(uses)]


def epoch_batches(
    items: Sequence[BucketedSample],
    batch_size: int,
    seed: int,
    epoch: int,
    group_by_length: bool = False,
) -> list[BatchSpec]:
    """The epoch's batches: each of one bucket, emitted when full; what remains comes
    last and stays short.

    group_by_length: batches of captions of about one length and of as many references,
    out of `CHUNK` batches each. The full ones are shuffled over the whole epoch: else a
    bucket of fewer than `CHUNK` batches would come at its end.
    """
    chunk = batch_size * (CHUNK if group_by_length else 1)
    waiting: dict[tuple[Size, int], list[tuple[int, int]]] = {}
    batches = []
    rest = []
    for position, index in enumerate(epoch_order(items, seed, epoch)):
        queue = waiting.setdefault(shape_of(items[index]), [])
        queue.append((index, position))
        if len(queue) == chunk:
            batches += _cut(items, queue, batch_size, epoch)
            queue.clear()
    for queue in waiting.values():
        of_bucket = _cut(items, queue, batch_size, epoch)
        full = len(queue) // batch_size
        batches += of_bucket[:full]
        rest += of_bucket[full:]
    if group_by_length:
        batches.sort(
            key=lambda batch: seeding.key(seed, "batch order", epoch, batch.first)
        )
    return batches + rest


def shape_of(item: BucketedSample) -> tuple[Size, int]:
    """What the images of one batch have in common: their size, and the number of their
    layers."""
    return item.crop.bucket, len(item.sample.layers)


def _cut(
    items: Sequence[BucketedSample],
    queue: Sequence[tuple[int, int]],
    batch_size: int,
    epoch: int,
) -> list[BatchSpec]:
    """The queue's batches, the short one last. What is more than one batch is sorted by
    length: by references, then by words and signs of the longest caption, which the
    length of the text follows for any tokenizer."""

    def length(use: tuple[int, int]) -> tuple[int, int]:
        sample = items[use[0]].sample
        words = max(len(WORDS.findall(text)) for text in sample.texts)
        return len(sample.control_images), words

    full = len(queue) // batch_size * batch_size
    uses = queue
    if len(queue) > batch_size:
        uses = [*sorted(queue[:full], key=length), *queue[full:]]
    batches = []
    for first in range(0, len(uses), batch_size):
        indices, positions = zip(*uses[first : first + batch_size], strict=True)
        batches.append(BatchSpec(epoch, indices, positions))
    return batches


def count_batches(items: Sequence[BucketedSample], batch_size: int) -> int:
    """Batches of one epoch: the sum over buckets of ceil(uses / batch_size)."""
    uses: Counter[tuple[Size, int]] = Counter()
    for item in items:
        uses[shape_of(item)] += item.sample.repeats
    return sum(ceil_divide(count, batch_size) for count in uses.values())


@dataclass(frozen=True)
class EpochSource:
    """A `BatchSource` over lists of micro-batches, epoch after epoch for ever.

    >>> def batches(epoch):
    ...     return [BatchSpec(epoch, (index,), (index,)) for index in range(2)]
    >>> cursors = EpochSource(batches, load=iter).iterate(epoch_cursor(0, 1))
    >>> next(cursors).cursor, next(cursors).cursor
    ({'epoch': 0, 'batch': 2}, {'epoch': 1, 'batch': 1})
    """

    batches: Callable[[int], Sequence[BatchSpec]]
    """The micro-batches of an epoch, in order: a pure function."""

    load: Callable[[Iterable[BatchSpec]], Iterator[Batch]]

    def iterate(self, cursor: Cursor) -> Iterator[MicroBatch]:
        """The cursor is an epoch and the index of a micro-batch in it; behind an
        epoch's last one it stays in it."""
        epoch, first = (cursor["epoch"], cursor["batch"]) if cursor else (0, 0)
        while True:
            specs = self.batches(epoch)
            for done, spec in enumerate(specs[first:], first + 1):
                cursor = epoch_cursor(epoch, done)
                yield MicroBatch(spec, cursor, ends_epoch=done == len(specs))
            epoch = epoch + 1
            first = 0


def epoch_cursor(epoch: int, batch: int) -> Cursor:
    """The cursor of an `EpochSource`: `batch` micro-batches of this epoch are done.

    >>> epoch_cursor(1, 3)
    {'epoch': 1, 'batch': 3}
    """
    return {"epoch": epoch, "batch": batch}
