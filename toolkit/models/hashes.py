"""Hashes of a model's files, which decide the numbers that its parts compute.

Equal hashes mean equal results. A cache entry or a run that was made with other weights
is recognised by them, and a cache entry that other code of an extension has made. This
module does not know sections or families, and writes nothing. `families` and `loading`
hash a whole model for the metadata and for resuming, `diffusers_model` hashes the parts
whose outputs are cached. Imports no torch.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from toolkit.config.sections.model_files import is_decoder_only
from toolkit.models.single_file import shards_of
from toolkit.models.vae_files import VAE_ENCODER, encoder_hash

FULL_HASH_BYTES = 512 * 2**20
SAMPLE_BYTES = 2**16
SAMPLES = 256


def weights_hash(
    folder: Path, parts: Sequence[str], files: Mapping[str, Path] | None = None
) -> str:
    """A hash of the files in the named subfolders, in hexadecimal digits.

    files: part -> the file with its weights. Of the folder of such a part only the
    config counts.

    Files over 512 MiB are represented by their size, their safetensors header and 256
    evenly spaced 64 KiB samples: reading 16 GB at each start would cost more than it
    protects from.
    """
    digest = hashlib.sha256()
    for part in parts:
        file = (files or {}).get(part)
        if file:
            digest.update((folder / part / "config.json").read_bytes())
            if part == "vae" and is_decoder_only(file):
                digest.update(encoder_hash(folder / part, file).encode())
            for piece in (
                piece for shard in shards_of(file) for piece in _pieces(shard)
            ):
                digest.update(piece)
            continue
        for path in sorted(p for p in (folder / part).rglob("*") if p.is_file()):
            digest.update(
                f"{part}/{path.relative_to(folder / part).as_posix()}:{path.stat().st_size};".encode()
            )
            for piece in _pieces(path):
                digest.update(piece)
    return digest.hexdigest()


def part_hashes(
    folder: Path, parts: Iterable[str], files: Mapping[str, Path]
) -> dict[str, str]:
    """The `weights_hash` of each part of a model folder.

    `VAE_ENCODER` -> the `encoder_hash` of the VAE: training uses only its encoder.
    files: see `weights_hash`.
    """
    hashes = {part: weights_hash(folder, [part], files) for part in parts}
    if "vae" in hashes:
        hashes[VAE_ENCODER] = encoder_hash(folder / "vae", files.get("vae"))
    return hashes


def source_hash(kinds: Iterable[type]) -> str:
    """A hash of the `.py` files in the folders of the modules of these classes, without
    the program's own (`toolkit`). Empty where no class is left.

    Example::

        keys = source_hash(type(family).__mro__)
    """
    folders = {
        Path(inspect.getfile(kind)).parent
        for kind in kinds
        if kind.__module__.partition(".")[0] != __name__.partition(".")[0]
    }
    digest = hashlib.sha256()
    for file in sorted(file for folder in folders for file in folder.glob("*.py")):
        digest.update(f"{file.name}:{file.stat().st_size};".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest() if folders else ""


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
