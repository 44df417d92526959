"""Keeps a library from importing another one that nothing here needs of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def block_import(name: str) -> Iterator[None]:
    """Inside the block the module `name` cannot be imported, as if it were not installed; after it, it can.

    A module that is imported already stays. For libraries that ask once, when they are imported, what is there.
    """
    if name in sys.modules:
        yield
        return
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]  # None is "there is no such module"
    modules[name] = None
    try:
        yield
    finally:
        del sys.modules[name]
