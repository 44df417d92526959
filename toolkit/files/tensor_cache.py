"""A content-addressed store of tensors: the key depends on everything that decides the
contents, so an entry is never stale.

One safetensors file per entry, written under a temporary name and renamed, with a hash
of its contents inside. A file that does not verify counts as missing. A file that
verified is trusted until its size or time of change differs. `latent_cache` and the
sample prompts store latents and texts here; it does not encode anything itself.

Imports torch only to read or write tensors: the hashes of a dataset use the same keys.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import RunError
from toolkit.files.safetensors_io import METADATA, Header, framed, read_header
from toolkit.files.writing import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


class TensorCache:
    """Named tensors by key, in `folder`, or, if that is None, in memory during the
    lifetime of this object.

    A damaged entry is logged. Safe to use from several threads and processes: equal
    keys mean equal contents, so it does not matter who writes last.

    >>> import torch
    >>> cache = TensorCache(None)
    >>> cache.put(key_of(image="a.png"), {"latents": torch.zeros(4)})
    >>> cache.get(key_of(image="a.png"))["latents"].shape
    torch.Size([4])
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._memory: dict[str, dict[str, Tensor]] = {}
        self._verified: dict[str, tuple[int, int]] = {}
        """Key -> bytes and time of change of the file that verified; hashing costs more
        than reading."""

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The entry, on the CPU and not to be written to; None when it is missing or
        damaged."""
        if self.folder is None:
            return self._memory.get(key)
        path = self._path(self.folder, key)
        try:
            with path.open("rb") as file:
                changed = os.fstat(file.fileno()).st_mtime_ns
                raw = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning(
                f"{path}: cache entry cannot be read ({error}), it is made again"
            )
            return None
        version = (len(raw), changed)
        if self._verified.get(key) != version:
            whole = False
            with suppress(ValueError, RecursionError):
                header, _, digest = _hashed(raw, key)
                metadata = header.get(METADATA)
                whole = isinstance(metadata, dict) and metadata.get("sha256") == digest
            if not whole:
                logger.warning(f"{path}: cache entry is damaged, it is made again")
                return None
            self._verified[key] = version
        from safetensors.torch import load

        return load(raw)

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Stores the entry. On disk it is complete or missing, also after a crash.
        Raises RunError where the folder cannot be written."""
        # copies: a view would keep the larger tensor behind it
        tensors = {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in tensors.items()
        }
        if self.folder is None:
            self._memory[key] = tensors
            return
        from safetensors.torch import save

        path = self._path(self.folder, key)
        header, data, digest = _hashed(save(tensors), key)
        header[METADATA] = {"sha256": digest}
        try:
            with atomic_write(path) as temporary:
                temporary.write_bytes(framed(json.dumps(header)) + bytes(data))
        except OSError as error:
            # On Windows no right while another process reads the target, which holds
            # the same contents already.
            if not (isinstance(error, PermissionError) and path.exists()):
                raise RunError(
                    f"{self.folder}: the cache cannot be written: {error}"
                ) from error

    def has(self, key: str) -> bool:
        """Whether the entry exists. A damaged file counts too: only `get` reads it."""
        if self.folder is None:
            return key in self._memory
        return self._path(self.folder, key).is_file()

    def sizes(self) -> dict[str, int]:
        """Key -> bytes of every entry on disk, damaged ones included. Empty for a cache
        in memory."""
        files = self.folder.glob("??/*.safetensors") if self.folder else ()
        return {file.stem: file.stat().st_size for file in files}

    def remove(self, key: str) -> None:
        """Deletes an entry on disk; a missing one is not an error. The cache must have
        a folder. Raises RunError where the file cannot be deleted."""
        assert self.folder is not None  # nobody removes what is in memory
        try:
            self._path(self.folder, key).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(
                f"{self.folder}: the cache cannot be written: {error}"
            ) from error

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.safetensors"


class ForgetfulCache(TensorCache):
    """Keeps nothing: every entry is computed again at each use, by an encoder that is
    being trained.

    >>> cache = ForgetfulCache()
    >>> cache.put("0f", {})
    >>> cache.has("0f")
    False
    """

    def __init__(self) -> None:
        super().__init__(None)

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Drops the tensors: `has` stays False and `get` returns None."""
        pass


def key_of(**parts: Any) -> str:
    """SHA-256 (hex) over everything that decides an entry's contents; JSON values and
    tuples of them.

    >>> key_of(image="a.png", size=(512, 512)) == key_of(size=[512, 512], image="a.png")
    True
    """
    return hashlib.sha256(_CANONICAL.encode(parts).encode()).hexdigest()


def _hashed(raw: bytes, key: str) -> tuple[Header, memoryview, str]:
    """Header and tensor bytes of a safetensors file, and the hash over the key, the
    tensors' names, dtypes, shapes and places, and their bytes. Raises ValueError when
    the header is damaged."""
    file = BytesIO(raw)
    header = read_header(file)
    data = memoryview(raw)[file.tell() :]
    tensors = {name: entry for name, entry in header.items() if name != METADATA}
    digest = hashlib.sha256(_CANONICAL.encode([key, tensors]).encode())
    digest.update(data)
    return header, data, digest.hexdigest()
