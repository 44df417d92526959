"""The memory of this process on the host: how much is free, and how freed memory
returns to the system.

A container's limit counts as the machine's. The memory of a GPU is in `device`.
Imports no torch. Called by the plan, by the loading of models, by quantization, and by
the page's view of the machine.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from toolkit.system.torch_version import PINNED_EXACT_ABOVE_MB, pins_exactly


def pinned_bytes(size: int) -> int:
    """Bytes of pinned memory that PyTorch allocates for a tensor of `size` bytes.

    >>> pinned_bytes(3_000_000)  # rounded up to a power of two
    4194304
    """
    if size <= 0 or (size > PINNED_EXACT_ABOVE_MB << 20 and pins_exactly()):
        return max(0, size)
    return 1 << (size - 1).bit_length()


def malloc_trim() -> None:
    """Gives the memory of freed tensors back to the system, where the C library has a
    function for it (glibc).

    glibc keeps freed chunks of up to 32 MiB: after a few quantized blocks they add up
    to more than the whole model.
    """
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim:
        trim(0)


@cache
def _c_library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def free_host_memory() -> int:
    """Bytes that this process can still take without swapping: the system's free
    memory, or the rest of a container's limit where that is less.

    0 where neither is known.
    """
    sizes = [_available(Path("/proc/meminfo")), *map(_left_in, CGROUPS)]
    return min((size for size in sizes if size is not None), default=0)


CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
"""Files with the limit and the usage of a container, in cgroup versions 2 and 1."""


def _available(meminfo: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        text = meminfo.read_text(encoding="ascii")
        return int(text.partition("MemAvailable:")[2].split()[0]) * 1024
    return None


def _left_in(cgroup: tuple[Path, Path]) -> int | None:
    with suppress(OSError, ValueError):  # without a limit it is `max`
        limit, used = (int(path.read_text(encoding="ascii")) for path in cgroup)
        return max(0, limit - used)
    return None
