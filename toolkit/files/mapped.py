"""Tensors in a mapped file: their bytes stay on the disk, and in the system's cache of
it, until they are read.

Nothing of them is memory of this process that the system could not take back. Weights
that are kept from an earlier start (`toolkit.models.kept`) are mapped, and offloading
(`toolkit.memory.offload`) tells the system which are read next and which were read.

A page that the disk does not give is SIGBUS, which ends the process. `read_in` makes an
error of it.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from toolkit.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

POPULATE_READ = 22 if sys.platform == "linux" else None
"""MADV_POPULATE_READ of linux/mman.h, since Linux 5.14; `mmap` has no name for it."""

MOUNTS = Path("/proc/self/mounts")

UNSURE = ("9p", "afs", "beegfs", "ceph", "cifs", "fuse", "gpfs", "lustre", "nfs", "smb")
"""How the types of file systems begin whose pages go with a server or a program."""


def unsure_disk(path: Path, mounts: Path = MOUNTS) -> str:
    """The type of the file system of a path if it is one of UNSURE; empty: another one,
    or not known. mounts: the system's table.

    >>> unsure_disk(Path.cwd(), Path("no table"))
    ''
    """
    try:
        table = mounts.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    place = Path(os.path.realpath(path))
    nearest, found = Path(), ""
    for line in table.splitlines():
        _, point, kind, *_ = line.split(" ")
        # a space in a name is \040 there
        at = Path(point.replace("\\040", " "))
        if place.is_relative_to(at) and len(at.parts) >= len(nearest.parts):
            nearest, found = at, kind
    return found if found.startswith(UNSURE) else ""


class _Map(mmap.mmap):
    """A map that knows its file."""

    path: Path


_maps: WeakValueDictionary[int, _Map] = WeakValueDictionary()
"""Address -> the map there, while a tensor is in it."""


def mapped_bytes(path: Path) -> Tensor:
    """All bytes of a file that has some, uint8, read-only: writing to them ends the
    process. The file may be renamed and deleted meanwhile."""
    import torch

    with path.open("rb") as file:
        area = _Map(file.fileno(), 0, access=mmap.ACCESS_READ)
    area.path = path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that they cannot be written to
        tensor = torch.frombuffer(area, dtype=torch.uint8)
    _maps[tensor.data_ptr()] = area
    return tensor


def will_be_at(tensor: Tensor, path: Path) -> None:
    """Says the path that the file of a map gets, for messages."""
    _maps[tensor.untyped_storage().data_ptr()].path = path


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor is in a file that `mapped_bytes` has mapped. Always False on a
    GPU."""
    return (
        bool(_maps)
        and tensor.device.type == "cpu"
        and tensor.untyped_storage().data_ptr() in _maps
    )


def will_read(tensor: Tensor) -> None:
    """Asks the system to read a mapped tensor from the disk, where it is not in its
    cache; returns at once."""
    _advise(tensor, getattr(mmap, "MADV_WILLNEED", None))


def read_in(tensor: Tensor) -> None:
    """Reads a mapped tensor from the disk before it is used. Raises RunError where the
    disk does not give its bytes. A system that cannot read so (`POPULATE_READ`) reads
    them at their use."""
    try:
        _advise(tensor, POPULATE_READ)
    except OSError as error:
        if error.errno == errno.EFAULT:
            path = _maps[tensor.untyped_storage().data_ptr()].path
            raise RunError(
                f"{path}: the disk no longer gives the bytes of this file of the kept model. Start again: a damaged "
                "one is made again. If it happens again, set model.keep_quantized: false, or use a training_folder on "
                "another disk."
            ) from error


def was_read(tensor: Tensor) -> None:
    """The pages of a mapped tensor no longer count as memory of this process. They stay
    in the system's cache."""
    _advise(tensor, getattr(mmap, "MADV_DONTNEED", None))


def _advise(tensor: Tensor, advice: int | None) -> None:
    """advice: None where the system has it not."""
    area = _maps.get(tensor.untyped_storage().data_ptr())
    if area is not None and advice is not None:
        first = int(tensor.storage_offset()) * tensor.element_size()
        begin = first - first % mmap.PAGESIZE
        area.madvise(
            advice,
            begin,
            first - begin + tensor.numel() * tensor.element_size(),
        )
