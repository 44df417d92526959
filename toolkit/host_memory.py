"""The memory of this process on the host."""

from __future__ import annotations

import ctypes
import sys
from functools import cache


def return_freed_memory() -> None:
    """Gives the memory of freed tensors back to the system, where the C library can be asked to.

    glibc keeps freed chunks of up to 32 MiB: after a few quantized blocks that is more than the whole model.
    """
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim:
        trim(0)


@cache
def _c_library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
