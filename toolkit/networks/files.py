"""The file a user takes away: written atomically, read back, and dated by its metadata, never by file times."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from toolkit.device import DTYPES
from toolkit.errors import RunError
from toolkit.files import replaced


def as_stored(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Copies on the CPU in `dtype`, a key of DTYPES: what a file will hold, whatever happens to the originals."""
    return {name: t.detach().to("cpu", DTYPES[dtype], copy=True).contiguous() for name, t in tensors.items()}


def save_network(path: Path, tensors: Mapping[str, Tensor], dtype: str, metadata: Mapping[str, str]) -> None:
    """Writes `tensors` in `dtype`; see `write_stored`."""
    write_stored(path, as_stored(tensors, dtype), metadata)


def write_stored(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors as they are with string `metadata` (a sha256 of the weights is added) and reads them back.

    Raises RunError when a weight is not finite, or the file does not hold what was written.
    """
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise RunError(f"{path}: {broken[0]}{more} are not finite in the file's dtype; nothing was written.")
    with replaced(path) as temporary:
        save_file(dict(tensors), temporary, metadata={"format": "pt", **metadata, "sha256": weights_digest(tensors)})
        _sort_header(temporary)
        _compare(temporary, tensors)


def _sort_header(path: Path) -> None:
    """Puts the header's metadata in the order of its keys: safetensors writes it in a new order each time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) <= length:
            file.seek(8)
            file.write(ordered.ljust(length))


def _compare(path: Path, stored: Mapping[str, Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        for name, tensor in stored.items():
            if not torch.equal(file.get_tensor(name), tensor):
                raise RunError(f"{path}: {name} reads back differently. Check the disk.")


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def step_file(folder: Path, name: str, step: int) -> Path:
    """`<name>_000000340.safetensors`: the weights after 340 optimizer steps."""
    return folder / f"{name}_{step:09d}.safetensors"


def step_files(folder: Path, name: str) -> dict[int, list[Path]]:
    """The step files of a run by their step, `_raw` ones included."""
    pattern = re.compile(re.escape(name) + r"_(\d{9,})(_raw)?\.safetensors")
    by_step: dict[int, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := pattern.fullmatch(path.name):
            by_step.setdefault(int(match.group(1)), []).append(path)
    return by_step


def remove_old_step_files(folder: Path, name: str, keep: int) -> list[Path]:
    """Deletes all but the newest `keep` step files, by their step number; 0 keeps all. Returns what was deleted."""
    by_step = step_files(folder, name)
    surplus = sorted(by_step)[:-keep] if keep else []
    old = [path for step in surplus for path in by_step[step]]
    for path in old:
        path.unlink()
    return old
