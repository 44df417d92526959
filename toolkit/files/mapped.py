"""Tensors in a mapped file: their bytes stay on the disk, and in the system's cache of
it, until they are read.

Nothing of them is memory of this process that the system could not take back. Weights
that are kept from an earlier start (`toolkit.models.kept`) are mapped, and offloading
(`toolkit.memory.offload`) tells the system which are read next and which were read.

A page that the disk does not give is SIGBUS, which ends the process, and bytes that
somebody overwrites are other weights. `read_in` makes an error of both; whatever uses a
mapped tensor calls it before.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from weakref import WeakValueDictionary

from toolkit.errors import RunError
from toolkit.files.writing import short

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
    file: BinaryIO
    version: tuple[int, int]
    """The file's when it was mapped; see `_version`."""


def _version(file: BinaryIO) -> tuple[int, int]:
    """Bytes of an open file, and when they last changed. To rename or delete a file
    changes its entry alone: its bytes are sound."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


_maps: WeakValueDictionary[int, _Map] = WeakValueDictionary()
"""Address -> the map there, while a tensor is in it."""


def mapped_bytes(path: Path) -> Tensor:
    """All bytes of a file that has some, uint8, read-only: writing to them ends the
    process. The file may be renamed and deleted meanwhile."""
    import torch

    file = path.open("rb")
    try:
        area = _Map(file.fileno(), 0, access=mmap.ACCESS_READ)
    except BaseException:
        file.close()
        raise
    area.path, area.file, area.version = path, file, _version(file)
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


def read_in(*tensors: Tensor) -> None:
    """Reads mapped tensors from the disk before they are used; others are left out.
    Raises RunError where the disk does not give their bytes, or the file was changed. A
    system that cannot read so (`POPULATE_READ`) reads them at their use."""
    for tensor in filter(is_mapped, tensors):
        area = _maps[tensor.untyped_storage().data_ptr()]
        try:
            if _version(area.file) == area.version:
                _advise(tensor, POPULATE_READ)
                continue
        except OSError as error:
            if error.errno not in (errno.EFAULT, errno.EIO, errno.ESTALE):
                continue
        raise RunError(
            f"{short(area.path)}: this file of the kept model was changed, or the disk no longer gives its bytes. "
            "Start again: a damaged one is made again. If it happens again, set model.keep_quantized: false, or use a "
            "training_folder on another disk."
        )


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
