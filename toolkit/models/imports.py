"""Keeps libraries from importing packages only to see whether they are installed.

`ModelFamily` loads the classes of a family inside `without_bitsandbytes`, so that no
family has to think of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType


@contextmanager
def block_import(name: str, asked_by: str) -> Iterator[None]:
    """Inside the block the module `name` cannot be imported, as if it were not
    installed; afterwards it can.

    A module that is imported already stays. This is for libraries that look once, in
    the module `asked_by`, for installed packages. Where they have found the package
    before, nothing is blocked.
    """
    if name in sys.modules or getattr(
        sys.modules.get(asked_by), f"_{name}_available", False
    ):
        yield
        return
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]  # None is "there is no such module"
    modules[name] = None
    try:
        yield
    finally:
        del sys.modules[name]


def without_bitsandbytes() -> AbstractContextManager[None]:
    """Inside the block diffusers is imported without bitsandbytes, which it would load,
    with PyTorch's compiler, 44 MB, as soon as it is installed. Optimizers can use it
    afterwards.

    Source: diffusers 0.42.1, utils/import_utils.py, whose answers are variables
    `_NAME_available`.

    Example::

        with without_bitsandbytes():
            import diffusers
    """
    return block_import("bitsandbytes", "diffusers.utils.import_utils")
