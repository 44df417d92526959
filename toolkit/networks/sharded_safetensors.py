"""A folder of safetensors shards with an index, as diffusers writes and reads it: one tensor in memory at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from toolkit.device import DTYPES
from toolkit.errors import RunError
from toolkit.files import fsync, write_json
from toolkit.networks.save import add_to_digest, bytes_of, is_finite
from toolkit.safetensors_header import METADATA, Header, compact, framed

STEM = "diffusion_pytorch_model"
SHARD_BYTES = 10 * 10**9
"""Most bytes of tensors in one shard. Source: diffusers, ModelMixin.save_pretrained, `max_shard_size`."""

_FORMAT_NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


def write_shards(
    folder: Path,
    tensors: Mapping[str, Tensor],
    dtype: str,
    metadata: Mapping[str, str] | None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes `tensors` in `dtype`, a key of DTYPES, by name; each is converted when it is its turn and read back.

    metadata: for the header of every shard, with a sha256 of its weights; None: neither. Raises RunError when a weight
    is not finite in `dtype`, or a shard does not hold what was written; the folder is then incomplete.
    """
    shards = _split(tensors, DTYPES[dtype].itemsize, shard_bytes)
    names = [f"{STEM}-{index:05d}-of-{len(shards):05d}.safetensors" for index in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [f"{STEM}.safetensors"]
    for file, shard in zip(names, shards, strict=True):
        _write_shard(folder / file, {name: tensors[name] for name in shard}, dtype, metadata)
        fsync(folder / file)
    if len(shards) > 1:
        total = sum(tensor.numel() for tensor in tensors.values()) * DTYPES[dtype].itemsize
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        write_json(
            folder / f"{STEM}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def _split(tensors: Mapping[str, Tensor], itemsize: int, most: int) -> list[list[str]]:
    """The sorted names in runs of at most `most` bytes; a larger tensor stands alone."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in sorted(tensors):
        own = tensors[name].numel() * itemsize
        if shards[-1] and size + own > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += own
    return shards


def _write_shard(path: Path, tensors: Mapping[str, Tensor], dtype: str, metadata: Mapping[str, str] | None) -> None:
    """One safetensors file: the header, the tensors by name without gaps."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        file.write(_header(tensors, dtype, metadata, "0" * 64))
        for name, tensor in tensors.items():
            stored = tensor.detach().to("cpu", DTYPES[dtype]).contiguous()
            if not is_finite(stored):
                raise RunError(f"{path.name}: {name} is not finite in {dtype}; the folder was not written.")
            add_to_digest(digest, name, stored)
            file.write(bytes_of(stored))
        file.seek(0)  # the digest is known only now; it is as long as its place
        file.write(_header(tensors, dtype, metadata, digest.hexdigest()))
    _compare(path, digest.hexdigest())


def _header(tensors: Mapping[str, Tensor], dtype: str, metadata: Mapping[str, str] | None, sha256: str) -> bytes:
    """The first bytes of the file up to the tensors."""
    more = {} if metadata is None else {**metadata, "sha256": sha256}
    entries: Header = {METADATA: {"format": "pt", **more}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * DTYPES[dtype].itemsize
        entries[name] = {"dtype": _FORMAT_NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    return framed(compact(entries))


def _compare(path: Path, expected: str) -> None:
    digest = hashlib.sha256()
    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            add_to_digest(digest, name, file.get_tensor(name))
    if digest.hexdigest() != expected:
        raise RunError(f"{path.name}: reads back differently. Check the disk.")
