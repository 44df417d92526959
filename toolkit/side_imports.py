"""Keeps a library from importing another one that nothing here needs of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(name: str) -> Iterator[None]:
    """Inside the block the module `name` cannot be imported, as if it were not installed; after it, it can.

    A module that is imported already stays. For libraries that ask once, when they are imported, what is there.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment] - what the import system reads as "there is no such module"
    try:
        yield
    finally:
        del sys.modules[name]
