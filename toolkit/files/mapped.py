"""Tensors in a mapped file: their bytes stay on the disk, and in the system's cache of
it, until they are read.

Nothing of them is memory of this process that the system could not take back. Weights
that are kept from an earlier start (`toolkit.models.kept`) are mapped, and offloading
(`toolkit.memory.offload`) tells the system which are read next and which were read.
"""

from __future__ import annotations

import mmap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from torch import Tensor

_maps: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()
"""Address -> the map there, while a tensor is in it."""


def mapped_bytes(path: Path) -> Tensor:
    """All bytes of a file that has some, uint8, read-only: writing to them ends the
    process. The file may be renamed and deleted meanwhile."""
    import torch

    with path.open("rb") as file:
        area = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that they cannot be written to
        tensor = torch.frombuffer(area, dtype=torch.uint8)
    _maps[tensor.data_ptr()] = area
    return tensor


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
    _advise(tensor, "MADV_WILLNEED")


def was_read(tensor: Tensor) -> None:
    """The pages of a mapped tensor no longer count as memory of this process. They stay
    in the system's cache."""
    _advise(tensor, "MADV_DONTNEED")


def _advise(tensor: Tensor, advice: str) -> None:
    area = _maps.get(tensor.untyped_storage().data_ptr())
    if area is not None and hasattr(mmap, advice):
        first = int(tensor.storage_offset()) * tensor.element_size()
        begin = first - first % mmap.PAGESIZE
        area.madvise(
            getattr(mmap, advice),
            begin,
            first - begin + tensor.numel() * tensor.element_size(),
        )
