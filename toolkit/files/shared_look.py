"""One look at the disk for all who ask at the same time.

The server of the page answers many requests at once, each of which needs the same list
of files. `SharedLook` reads it once for all that wait, and each of them gets the files
as they were when it asked, or newer. It is not a cache: a later request reads again.
The page and `toolkit.train.run_index` use it. Imports no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

Found = TypeVar("Found")


class SharedLook(Generic[Found]):
    """What is on the disk now, for several threads: those who ask while somebody looks
    wait for the next look, and share it. So a hundred who ask at once cost a few looks,
    and each sees what was written before it asked.

    Example::

        names = SharedLook(lambda before: os.listdir("output"))
        names.now()
    """

    def __init__(self, look: Callable[[Found | None], Found]) -> None:
        """look: looks at the disk, given what it found the last time (None: it has not
        looked yet). What it gives is shared, and nobody may change it."""
        self._look = look
        self._found: Found | None = None
        self._begun = float("-inf")
        self._lock = Lock()

    def now(self) -> Found:
        """What is there. Raises what the look raises."""
        asked = time.monotonic()
        with self._lock:
            if self._found is None or self._begun <= asked:
                begun = time.monotonic()
                self._found = self._look(self._found)
                self._begun = begun
            return self._found
