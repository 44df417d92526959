"""In which order and in which batches an epoch is seen: pure functions of (seed, epoch).

The global order is drawn first, over single uses of images; batches are formed along it. So a
use's position, which keys all its draws, does not depend on the batch size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from toolkit import seeding
from toolkit.contracts import BatchSpec, Item, Size


def epoch_order(items: Sequence[Item], seed: int, epoch: int) -> list[int]:
    """Index of the item at each position of the epoch; each item exactly `repeats` times."""
    # Sorting by a hash depends on no library's shuffle, so an order never changes with a version.
    uses = [
        (seeding.key(seed, "order", epoch, index, repeat), index)
        for index, item in enumerate(items)
        for repeat in range(item.sample.repeats)
    ]
    uses.sort()
    return [index for _, index in uses]


def epoch_batches(items: Sequence[Item], batch_size: int, seed: int, epoch: int) -> list[BatchSpec]:
    """The epoch's batches: each of one bucket, emitted when full; what remains comes last and stays short."""
    waiting: dict[Size, list[tuple[int, int]]] = {}
    batches = []
    for position, index in enumerate(epoch_order(items, seed, epoch)):
        queue = waiting.setdefault(items[index].crop.bucket, [])
        queue.append((index, position))
        if len(queue) == batch_size:
            batches.append(_batch(epoch, queue))
            queue.clear()
    return batches + [_batch(epoch, queue) for queue in waiting.values() if queue]


def count_batches(items: Sequence[Item], batch_size: int) -> int:
    """Batches of one epoch: the sum over buckets of ceil(uses / batch_size)."""
    uses: Counter[Size] = Counter()
    for item in items:
        uses[item.crop.bucket] += item.sample.repeats
    return sum(-(-count // batch_size) for count in uses.values())


def _batch(epoch: int, queue: Sequence[tuple[int, int]]) -> BatchSpec:
    indices, positions = zip(*queue, strict=True)
    return BatchSpec(epoch, indices, positions)
