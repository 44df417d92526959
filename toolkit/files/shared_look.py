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
    """A reading of the disk that several threads share. Threads that ask during a
    reading wait for the next one and share it. So a hundred requests at once cost a few
    readings, and each request sees all that was written before it.

    Example::

        names = SharedLook(lambda before: os.listdir("output"))
        names.now()
    """

    def __init__(self, look: Callable[[Found | None], Found]) -> None:
        """look: reads the disk. Its argument is its last result, None the first time.
        The result is shared, so callers must not change it."""
        self._look = look
        self._found: Found | None = None
        self._begun = float("-inf")
        self._lock = Lock()

    def now(self) -> Found:
        """The result of a reading that began after the call. Raises what `look`
        raises."""
        asked = time.monotonic()
        with self._lock:
            if self._found is None or self._begun <= asked:
                begun = time.monotonic()
                self._found = self._look(self._found)
                self._begun = begun
            return self._found
