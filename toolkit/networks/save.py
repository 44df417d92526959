"""Saves network files: written atomically and read back; their step is in their metadata, never in file times."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from toolkit.device import DTYPES
from toolkit.errors import RunError
from toolkit.files import atomic_write, remove
from toolkit.run_files import step_files
from toolkit.safetensors_header import LENGTH_BYTES, compact, read_header
from toolkit.safetensors_io import save_file


def to_cpu_copies(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Copies on the CPU in `dtype`, a key of DTYPES."""
    return {name: t.detach().to("cpu", DTYPES[dtype], copy=True).contiguous() for name, t in tensors.items()}


def save_network(path: Path, tensors: Mapping[str, Tensor], dtype: str, metadata: Mapping[str, str]) -> None:
    """Writes `tensors` in `dtype`; see `write_safetensors_verified`."""
    write_safetensors_verified(path, to_cpu_copies(tensors, dtype), metadata)


def write_safetensors_verified(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> None:
    """Writes tensors as they are with string `metadata` (a sha256 of the weights is added) and reads them back.

    metadata: None writes none, the sha256 included; `format`, which readers ask for, is always there.
    Raises RunError when a weight is not finite, or the file does not hold what was written.
    """
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise RunError(f"{path}: {broken[0]}{more} are not finite in the file's dtype; nothing was written.")
    header = {"format": "pt"} if metadata is None else {"format": "pt", **metadata, "sha256": weights_digest(tensors)}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=header)
        _sort_header(temporary)
        _compare(temporary, tensors)


def _sort_header(path: Path) -> None:
    """Puts the header's metadata in the order of its keys: safetensors writes it in a new order each time."""
    with path.open("r+b") as file:
        ordered = compact(read_header(file)).encode()
        room = file.tell() - LENGTH_BYTES
        if len(ordered) <= room:
            file.seek(LENGTH_BYTES)
            file.write(ordered.ljust(room))


def _compare(path: Path, stored: Mapping[str, Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        for name, tensor in stored.items():
            if not torch.equal(file.get_tensor(name), tensor):
                raise RunError(f"{path}: {name} reads back differently. Check the disk.")


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite. Checks min and max only (NaN if any is), in a fifth of the time."""
    return tensor.numel() == 0 or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        add_to_digest(digest, name, tensors[name])
    return digest.hexdigest()


def add_to_digest(digest: Any, name: str, tensor: Tensor) -> None:
    """Feeds one tensor on the CPU to a hash of weights."""
    digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
    digest.update(bytes_of(tensor))


def bytes_of(tensor: Tensor) -> memoryview:
    """The numbers of a tensor on the CPU as they stand in a file."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def remove_old_step_files(folder: Path, name: str, keep: int) -> list[Path]:
    """Deletes all but the newest `keep` step files, by their step number; 0 keeps all. Returns what was deleted."""
    by_step = step_files(folder, name)
    surplus = sorted(by_step)[:-keep] if keep else []
    old = [path for step in surplus for path in by_step[step]]
    for path in old:
        remove(path)
    return old
