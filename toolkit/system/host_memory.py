"""The memory of this process on the host."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

from toolkit.system.torch_version import PINNED_EXACT_ABOVE_MB, pins_exactly


def pinned_bytes(size: int) -> int:
    """Bytes of the pinned memory that PyTorch takes for a tensor of `size` bytes."""
    if size <= 0 or (size > PINNED_EXACT_ABOVE_MB << 20 and pins_exactly()):
        return max(0, size)
    return 1 << (size - 1).bit_length()


def malloc_trim() -> None:
    """Gives the memory of freed tensors back to the system, where the C library can be
    asked to.

    glibc keeps freed chunks of up to 32 MiB: after a few quantized blocks that is more
    than the whole model.
    """
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim:
        trim(0)


@cache
def _c_library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def free_host_memory() -> int:
    """Bytes this process can still take without swapping: what the system has, or less
    where a container has a limit.

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
"""Files of a container's limit and what it uses, in cgroup versions 2 and 1."""


def _available(meminfo: Path) -> int | None:
    try:
        lines = dict(
            line.split(":", 1)
            for line in meminfo.read_text(encoding="ascii").splitlines()
        )
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return None


def _left_in(cgroup: tuple[Path, Path]) -> int | None:
    try:
        limit, used = (path.read_text(encoding="ascii").strip() for path in cgroup)
        if limit == "max":
            return None
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):
        return None
