"""Reads many small files with a few threads, which wait for the disk in parallel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Thing = TypeVar("Thing")
Found = TypeVar("Found")


def thread_map(work: Callable[[Thing], Found], things: Sequence[Thing], at_once: int = 500) -> Iterator[Found]:
    """The results of `work` for all things, in order.

    at_once: size of a chunk; passing a single item to a thread takes as long as reading a small file.
    """
    if not things:
        return
    portions = (things[start : start + at_once] for start in range(0, len(things), at_once))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for found in pool.map(lambda portion: [work(thing) for thing in portion], portions):
            yield from found
