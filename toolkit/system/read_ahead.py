"""Work in a few threads: work that waits for the disk, or that a step waits for.

The results come in order and are the same for any number of threads. Only work that
releases Python's lock becomes faster: reading, decoding, copying. Called by the scans
of datasets, by the latent cache, and by the data loader.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from toolkit.errors import Interrupted

Thing = TypeVar("Thing")
Found = TypeVar("Found")

_AHEAD_PER_WORKER = 2
_LOOK_EVERY_S = 0.2


@contextmanager
def threads(
    workers: int, name: str, leaving: type[BaseException] = Interrupted
) -> Iterator[ThreadPoolExecutor]:
    """Threads for the block. They end with it; after Interrupted or `leaving`, and where
    a generator is closed in it, nothing waits for them. What has not begun by then is
    dropped."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    waits = True
    try:
        yield pool
    except (Interrupted, GeneratorExit, leaving):
        waits = False
        raise
    finally:
        pool.shutdown(waits, cancel_futures=True)


def result_of(future: Future[Found], look: Callable[[], object] | None = None) -> Found:
    """The result, once it is there. look: called five times a second until then; it may
    raise."""
    while look and not wait([future], _LOOK_EVERY_S).done:
        look()
    return future.result()


def loaded_ahead(
    load: Callable[[Thing], Found],
    things: Iterable[Thing],
    workers: int,
    look: Callable[[], object] | None = None,
) -> Iterator[Found]:
    """The results of `load` in order, prefetched by `workers` threads; 0 loads in this
    thread.

    Closing the iterator ends the threads; work that has not begun by then is dropped.
    Neither this nor Interrupted waits for them. look: as of `result_of`.

    >>> list(loaded_ahead(len, ["a", "bc", ""], workers=2))
    [1, 2, 0]
    """
    if workers == 0:
        yield from map(load, things)
        return
    remaining = iter(things)
    with threads(workers, "batches") as pool:
        first = islice(remaining, workers * _AHEAD_PER_WORKER)
        queue: deque[Future[Found]] = deque(pool.submit(load, thing) for thing in first)
        while queue:
            result = result_of(queue.popleft(), look)
            queue.extend(pool.submit(load, thing) for thing in islice(remaining, 1))
            yield result


def thread_map(
    work: Callable[[Thing], Found], things: Sequence[Thing], at_once: int = 500
) -> Iterator[Found]:
    """The results of `work` for many things, in order, by up to 8 threads.

    at_once: size of a chunk; passing a single item to a thread takes as long as reading
    a small file.

    >>> list(thread_map(abs, [3, -1, -2]))
    [3, 1, 2]
    """
    portions = [
        things[start : start + at_once] for start in range(0, len(things), at_once)
    ]
    for results in loaded_ahead(
        lambda portion: [work(thing) for thing in portion],
        portions,
        min(8, os.cpu_count() or 1),
    ):
        yield from results


_TIMED = 100
"""Files of a chunk whose reading is timed."""

_LITTLE_S = 0.01
"""Seconds that a chunk may always wait for the disk."""

_MUCH_S = 0.5
"""CPU seconds above which a chunk is not of small files: images are decoded."""


def map_small_files(
    read: Callable[[Thing], Found], things: Sequence[Thing]
) -> Iterator[Found]:
    """The results of `read`, which reads a small file, for many things, in order.

    Files that the system has in memory are read in this thread: several
    would hand Python's lock over at each read, which takes longer than the read. After
    a chunk that waits for the disk, or takes much work, `thread_map` reads the others.

    >>> list(map_small_files(abs, [3, -1, -2]))
    [3, 1, 2]
    """
    done = 0
    needs_threads = False
    while done < len(things) and not needs_threads:
        begun, cpu_begun = time.perf_counter(), time.thread_time()
        results = [read(thing) for thing in things[done : done + _TIMED]]
        cpu_seconds = time.thread_time() - cpu_begun
        waited = time.perf_counter() - begun - cpu_seconds
        is_waiting = waited > cpu_seconds + _LITTLE_S
        needs_threads = is_waiting or cpu_seconds > _MUCH_S
        done += len(results)
        yield from results
    yield from thread_map(read, things[done:])
