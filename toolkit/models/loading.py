"""Reads the weights of a model folder of any family: shards, loading block by block, hashes of the parts.

Shards are memory-mapped, so that at most one block stands in memory in its stored precision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from toolkit.config.model_files import read_model_json
from toolkit.errors import RunError

WEIGHTS = "diffusion_pytorch_model.safetensors"


class ShardReader:
    """Tensors of a single or sharded safetensors folder by name; each is read once, straight from the map."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        index = folder / f"{WEIGHTS}.index.json"
        files = _shards(index) if index.is_file() else [WEIGHTS]
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            raise RunError(f"{folder}: missing weight files: {some(missing)}. Copy or download the model again.")
        shards = [self._open(name, stack) for name in files]
        self._shard_of = {name: shard for shard in shards for name in shard.keys()}  # noqa: SIM118 - not a dict
        self.names = set(self._shard_of)

    def _open(self, name: str, stack: ExitStack) -> safe_open:
        try:
            return stack.enter_context(safe_open(self.folder / name, framework="pt"))
        except SafetensorError as error:
            raise RunError(f"{self.folder / name}: damaged ({error}). Copy or download the model again.") from error

    def take(self, name: str) -> torch.Tensor:
        self.names.discard(name)
        return self._shard_of[name].get_tensor(name)


def _shards(index: Path) -> list[str]:
    """The files of an index."""
    weight_map = read_model_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise RunError(f"{index}: has no 'weight_map'. Copy or download the model again.")
    return sorted(set(weight_map.values()))


def fill(module: nn.Module, reader: ShardReader, prefix: str, dtype: torch.dtype, skip: str = "\0") -> None:
    """Gives `module` its weights, copied out of the map in `dtype`; names under `skip` are left alone."""
    wanted = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(skip)}
    absent = [prefix + name for name in wanted if prefix + name not in reader.names]
    if absent:
        raise RunError(f"{reader.folder}: missing weights: {some(absent)}. Copy or download the model again.")
    state = {name: reader.take(prefix + name).to(dtype, copy=True) for name in wanted}
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"is {tuple(tensor.shape)}, config.json says {tuple(wanted[name].shape)}"
            raise RunError(f"{reader.folder}: {prefix}{name} {shapes}.")
    module.load_state_dict(state, strict=False, assign=True)


FULL_HASH_BYTES = 512 * 2**20
SAMPLE_BYTES = 2**16
SAMPLES = 256


def weights_hash(folder: Path, parts: Sequence[str]) -> str:
    """A hash of the named subfolders' files: what decides the numbers that a part computes.

    Files over 512 MiB are represented by their size, their safetensors header and 256 evenly spaced
    64 KiB samples: reading 16 GB at each start would cost more than it protects from.
    """
    digest = hashlib.sha256()
    for part in parts:
        for path in sorted(p for p in (folder / part).rglob("*") if p.is_file()):
            digest.update(f"{part}/{path.relative_to(folder / part).as_posix()}:{path.stat().st_size};".encode())
            for piece in _pieces(path):
                digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= FULL_HASH_BYTES:
            while chunk := file.read(2**20):
                yield chunk
            return
        yield file.read(2**20)
        for index in range(SAMPLES):
            file.seek((size - SAMPLE_BYTES) * index // (SAMPLES - 1))
            yield file.read(SAMPLE_BYTES)


def some(names: Iterable[str], most: int = 5) -> str:
    """The first of these names, for a message."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more
