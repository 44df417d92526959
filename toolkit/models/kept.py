"""Keeps a model's quantized transformer on the disk, so that the next start reads it
instead of the published weights.

An entry is a folder in `_cache/models`. Its name stands for its origin: content of the
weights, type of the quantized ones, merged files, version of the rule. It has a
safetensors file for each block, one for the other weights, and MANIFEST. It is written
under a temporary name, so it exists completely or not at all. Each file has a checksum,
which is compared while it is read. A damaged entry is deleted and made again.

Blocks that wait in main memory are mapped: they are read where they are copied to the
device, and take no memory of the process. This is also true for the start that writes
the entry.

This module does not quantize, and does not choose the name of an entry. That is done by
`toolkit.train.base_model`, whose `Kept` is used by `loading.load_blockwise`. The
planner (`toolkit.plan.kept_model`) and the tool for caches list the entries.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from toolkit.errors import RunError
from toolkit.files.mapped import mapped_bytes
from toolkit.files.safetensors_io import METADATA, framed, read_header
from toolkit.files.writing import (
    TEMP_FILE_GLOB,
    atomic_write_dir,
    folder_lock,
    free_space,
    fsync,
    locked,
    read_object,
    readable_size,
    remove,
    write_json,
)
from toolkit.system.host_memory import malloc_trim

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

MODELS = "models"
"""The folder of the entries, in the cache of a training folder."""

MANIFEST = "kept.json"
REST = "rest"
"""Name of the file with the weights outside of the blocks."""

LEAST_FREE = 10 * 10**9
"""Bytes of the disk that entries leave free."""

ALIGNMENT = 256
"""Bytes; the same as for tensors in a block that waits (`toolkit.memory.offload`)."""

PAGE = 4096
GAP = "_gap."
"""Beginning of the names of the bytes between two tensors. The format allows no holes,
so they are tensors too."""

WAIT_S = 0.2

DTYPES = {
    "U8": "uint8",
    "I8": "int8",
    "I32": "int32",
    "I64": "int64",
    "BOOL": "bool",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}
"""Number types of a safetensors file -> torch's."""

_CODES = {name: code for code, name in DTYPES.items()}

ModelT = TypeVar("ModelT")


class DamagedEntryError(Exception):
    """An entry cannot be used; the message has the reason."""


@dataclass(frozen=True)
class KeptEntry:
    """A finished entry on the disk.

    Example::

        for entry in kept_entries(folder / CACHE_FOLDER):
            print(entry.folder.name, entry.model, entry.bytes)
    """

    folder: Path
    bytes: int
    used: float
    """Time of the last read or write, in seconds since 1970."""

    model: str
    """Label with the name of the model and its type (`families.kept_label`)."""


def kept_entries(cache: Path) -> list[KeptEntry]:
    """The entries in a cache folder, the least recently used first.

    >>> kept_entries(Path("no_such_folder"))
    []
    """
    entries = []
    for manifest in (cache / MODELS).glob(f"[!.]*/{MANIFEST}"):
        folder = manifest.parent
        with suppress(OSError):  # deleted by another process meanwhile
            size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            used = manifest.stat().st_mtime
            model = str(read_object(manifest).get("model", ""))
            entries.append(KeptEntry(folder, size, used, model))
    return sorted(entries, key=lambda entry: entry.used)


def why_not_kept(cache: Path, needed: int, entry_folder: Path | None = None) -> str:
    """The reason why an entry of this many bytes is not written. Empty: it is written,
    or exists. entry_folder: its folder."""
    return _room_for(cache, needed, entry_folder)[1]


def _room_for(
    cache: Path, needed: int, entry_folder: Path | None
) -> tuple[list[KeptEntry], str]:
    """The entries that are deleted to make room, and the reason where even that is not
    enough."""
    free = free_space(cache / MODELS)
    lacks = needed + LEAST_FREE - free
    going = list[KeptEntry]()
    for entry in kept_entries(cache):
        if lacks <= 0:
            break
        if entry.folder != entry_folder:
            going.append(entry)
            lacks -= entry.bytes
    if lacks <= 0:
        return going, ""
    sizes = f"{readable_size(needed)}, {readable_size(free)} are free, and {readable_size(LEAST_FREE)} stay free"
    return [], f"it takes {sizes}"


class Kept:
    """The entry of one model, as a load uses it.

    Example::

        kept = Kept(cache, name, needed, label, describe, restore)
        options = ModelLoadOptions(folder, device, dtype, kept=kept)
        transformer = kept.used_by(read, make)  # in `load_blockwise`
    """

    def __init__(
        self,
        cache: Path,
        name: str,
        needed: int,
        model: str,
        describe: Callable[[nn.Module], Mapping[str, Any]],
        restore: Callable[[nn.Module, Mapping[str, Any], Mapping[str, Tensor]], None],
        maps: bool = True,
    ) -> None:
        """cache: of the training folder. name: of the entry. needed: its approximate
        bytes. model: its label. describe: returns the quantized layers of a block as
        JSON values. restore: fills a block from these values and all its tensors. maps:
        whether blocks that wait may be mapped; False where something writes to their
        weights."""
        self.cache = cache
        self.folder = cache / MODELS / name
        self.needed = needed
        self.model = model
        self.describe = describe
        self.restore = restore
        self.maps = maps

    def is_there(self) -> bool:
        """Whether there is an entry. A damaged one counts too."""
        return (self.folder / MANIFEST).is_file()

    def used_by(
        self,
        read: Callable[[KeptReader], ModelT],
        make: Callable[[KeptWriter | None], ModelT],
    ) -> ModelT:
        """The model that `read` fills from the entry. Without an entry, `make` makes it
        and passes it to the writer, block by block. Without a writer (None) it is not
        kept."""
        entry = self._begin()
        while isinstance(entry, KeptReader):
            try:
                model = read(entry)
            except DamagedEntryError as error:
                logger.warning(
                    f"{self.folder}: the kept model is damaged ({error}), it is made again"
                )
                entry = self._begin() if self._remove() else None
            else:
                logger.info(
                    f"transformer: read from {self.folder} ({readable_size(entry.bytes)}), as it was quantized"
                )
                return model
        if entry is None:
            return make(None)
        with entry:
            return make(entry)

    def _begin(self) -> KeptReader | KeptWriter | None:
        """The reader of the entry, or its writer. None where it cannot be written. It
        waits for another process that writes the entry."""
        waits = False
        while True:
            if self.is_there():
                return KeptReader(self)
            try:
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                with folder_lock(self.folder.parent):
                    if self.is_there():
                        continue
                    writing = self.folder.parent.glob(
                        f".{self.folder.name}.????????.tmp"
                    )
                    if not any(_lock_of(left) is False for left in writing):
                        return self._writer()
            except (OSError, RunError) as error:
                self.say_not_kept(error)
                return None
            if not waits:
                logger.info(
                    f"transformer: waits for another process, which writes {self.folder}"
                )
            waits = True
            time.sleep(WAIT_S)

    def _writer(self) -> KeptWriter | None:
        # Left by processes that were killed.
        for left in self.folder.parent.glob(TEMP_FILE_GLOB):
            if _lock_of(left):
                shutil.rmtree(left, ignore_errors=True)
        going, lack = _room_for(self.cache, self.needed, self.folder)
        if lack:
            self.say_not_kept(lack)
            return None
        for entry in going:
            logger.info(
                f"{entry.folder}: deleted to make room ({entry.model}, {readable_size(entry.bytes)})"
            )
            remove(entry.folder)
        return KeptWriter(self)

    def say_not_kept(self, reason: object) -> None:
        """Logs a warning that the model is not kept, with the reason."""
        logger.warning(
            f"model.keep_quantized: the quantized model is not kept in {self.folder.parent}: {reason}"
        )

    def _remove(self) -> bool:
        """Deletes the entry, which another process may do as well. Returns whether it
        is gone."""
        try:
            with suppress(FileNotFoundError):
                remove(self.folder)
        except OSError as error:
            self.say_not_kept(
                f"the damaged one cannot be deleted ({error.strerror or error})"
            )
        return not self.is_there()


def _lock_of(folder: Path) -> bool | None:
    """Whether the lock of a temporary folder is free, as `locked` says. None: the file
    system has no locks, or the folder is gone."""
    try:
        with locked(folder) as is_free:
            return is_free
    except OSError:
        return None


class KeptReader:
    """Reads an entry file by file.

    Example::

        entry = KeptReader(kept)
        for index, block in enumerate(model.transformer_blocks):
            entry.fill(f"transformer_blocks.{index}", block, stays)
        entry.fill_rest(model, without="transformer_blocks.")
    """

    def __init__(self, entry: Kept) -> None:
        self._kept = entry
        self.bytes = 0

    def fill(self, name: str, block: nn.Module, stays: Callable[[str], bool]) -> None:
        """Gives a block the weights that were written for it. Its own weights are not
        read. stays: whether the tensor of this name waits in main memory; such tensors
        are mapped. Raises DamagedEntryError."""
        path, layers, tensors = self._read(name)
        try:
            self._kept.restore(block, layers, tensors)
        except (
            AttributeError,
            KeyError,
            TypeError,
            RuntimeError,
        ) as error:  # RuntimeError: from `load_state_dict`
            reason = " ".join(str(error).split())[:100]
            raise DamagedEntryError(
                f"{path.name} is of another block: {reason}"
            ) from error
        del tensors
        if self._kept.maps:
            _map(block, path, stays)

    def fill_rest(self, model: nn.Module, without: str) -> None:
        """Gives the model its weights outside of the blocks. without: beginning of the
        blocks' names. Raises DamagedEntryError."""
        *_, tensors = self._read(REST)
        try:
            loaded = model.load_state_dict(tensors, strict=False, assign=True)
        except RuntimeError as error:
            raise DamagedEntryError(
                f"what is around the blocks is of another model: {str(error)[:100]}"
            ) from error
        for name in loaded.missing_keys:
            if not name.startswith(without):
                raise DamagedEntryError(f"it lacks {name}")
        with suppress(OSError):  # sets the time of the last use
            os.utime(self._kept.folder / MANIFEST)

    def _read(self, name: str) -> tuple[Path, Mapping[str, Any], dict[str, Tensor]]:
        """Path, quantized layers and tensors of a file. Raises DamagedEntryError."""
        import torch

        path = _file(self._kept.folder, name)
        try:
            with path.open("rb", buffering=0) as file:
                header = read_header(file)
                end = path.stat().st_size
                memory = torch.empty(end - file.tell(), dtype=torch.uint8)
                _read_into(file, memory)
        except (OSError, ValueError, RecursionError) as error:
            raise DamagedEntryError(
                f"{path.name}: {getattr(error, 'strerror', None) or error}"
            ) from error
        metadata = header.pop(METADATA, {})
        if metadata.get("crc32") != _checksum([memory.numpy()]):
            raise DamagedEntryError(
                f"the bytes of {path.name} are not those that were written"
            )
        self.bytes += end
        try:
            return path, json.loads(metadata["layers"]), _views(header, memory)
        except (ValueError, LookupError, TypeError, RuntimeError) as error:
            raise DamagedEntryError(f"the header of {path.name}: {error}") from error


class KeptWriter:
    """Writes an entry file by file, inside a `with`. Where writing fails there is no
    entry, and a warning is logged.

    Example::

        with KeptWriter(kept) as entry:
            entry.add("transformer_blocks.0", block)
            entry.finish(model, without="transformer_blocks.")
    """

    def __init__(self, entry: Kept) -> None:
        """Makes the temporary folder. Raises RunError where it cannot be made."""
        self._kept = entry
        stack = ExitStack()
        self._temporary = stack.enter_context(atomic_write_dir(entry.folder))
        self._stack: ExitStack | None = stack
        self._bytes = 0
        self._flusher = ThreadPoolExecutor(1, "kept model")
        """Flushes files to the disk while the next blocks are quantized."""
        self._flushed: list[Future[None]] = []

    def __enter__(self) -> KeptWriter:
        return self

    def add(
        self,
        name: str,
        module: nn.Module,
        stays: Callable[[str], bool] = lambda name: False,
        last: Collection[str] = (),
    ) -> None:
        """Writes a module. stays: see `KeptReader.fill`; such tensors of the module are
        mapped from the file from here on. last: children whose tensors are written
        behind all others, so that the others are contiguous."""
        if self._stack is None:
            return
        state = sorted(
            module.state_dict().items(), key=lambda item: item[0].split(".")[0] in last
        )
        path = _file(self._temporary, name)
        try:
            self._bytes += _write(path, state, json.dumps(self._kept.describe(module)))
        except OSError as error:
            self._give_up(error)
            return
        del state
        self._flushed.append(self._flusher.submit(fsync, path))
        if self._kept.maps:
            _map(module, path, stays)

    def finish(self, rest: nn.Module, without: str) -> None:
        """Writes the weights outside of the blocks, and puts the entry in its place.
        without: beginning of the blocks' names."""
        if self._stack is None:
            return
        state = [
            (name, tensor)
            for name, tensor in rest.state_dict().items()
            if not name.startswith(without)
        ]
        try:
            self._bytes += _write(_file(self._temporary, REST), state, "{}")
            fsync(_file(self._temporary, REST))
            for flushed in self._flushed:
                flushed.result()
            write_json(
                self._temporary / MANIFEST,
                {"model": self._kept.model, "bytes": self._bytes},
            )
            self._stack.close()
        except (OSError, RunError) as error:
            self._give_up(error)
            return
        self._stack = None
        self._flusher.shutdown()
        logger.info(
            f"transformer: kept in {self._kept.folder} ({readable_size(self._bytes)}) for the next start"
        )

    def _give_up(self, error: Exception) -> None:
        """Ends the writing. Tensors that are mapped stay mapped: their file has no name
        any more."""
        self._end()
        self._kept.say_not_kept(getattr(error, "strerror", None) or error)

    def _end(self) -> None:
        stack = self._stack
        self._stack = None
        self._flusher.shutdown(cancel_futures=True)
        if stack is not None:
            with suppress(_NotFinished):
                stack.__exit__(_NotFinished, _NotFinished(), None)

    def __exit__(self, *_: object) -> None:
        self._end()


class _NotFinished(Exception):
    """Keeps an unfinished entry from being put in its place."""


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _write(path: Path, state: Iterable[tuple[str, Tensor]], layers: str) -> int:
    """Writes a safetensors file whose tensors begin at multiples of ALIGNMENT, the
    first one at a page. Returns its bytes."""
    header: dict[str, Any] = {}
    pieces: list[Any] = []
    end = 0
    for name, tensor in state:
        gap = -end % ALIGNMENT
        if gap:
            header[f"{GAP}{len(pieces)}"] = {
                "dtype": "U8",
                "shape": [gap],
                "data_offsets": [end, end + gap],
            }
            pieces.append(bytes(gap))
            end += gap
        raw = tensor.detach().cpu().contiguous().flatten()
        code = _CODES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {
            "dtype": code,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + raw.nbytes],
        }
        pieces.append(_bytes_of(raw))
        end += raw.nbytes
    header[METADATA] = {"layers": layers, "crc32": _checksum(pieces)}
    frame = framed(json.dumps(header), PAGE)
    with path.open("wb", buffering=0) as file:
        for piece in (frame, *pieces):
            view = memoryview(piece)
            while view.nbytes:
                view = view[file.write(view) :]
    return len(frame) + end


def _read_into(file: Any, memory: Tensor) -> None:
    """Fills the memory from an unbuffered file. Raises ValueError where the file is too
    short."""
    left = memoryview(cast("Any", memory.numpy()))
    while left.nbytes:
        count = file.readinto(left)
        if not count:
            raise ValueError("it is cut off")
        left = left[count:]


def _bytes_of(raw: Tensor) -> Any:
    import torch

    return raw.view(torch.uint8).numpy() if raw.numel() else b""


def _checksum(pieces: Iterable[Any]) -> str:
    checksum = 0
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    return str(checksum)


def _views(header: Mapping[str, Any], memory: Tensor) -> dict[str, Tensor]:
    """The tensors of a file by name. memory: the bytes behind its header, which the
    tensors share."""
    import torch

    tensors = {}
    for name, entry in header.items():
        if not name.startswith(GAP):
            first, last = entry["data_offsets"]
            dtype = getattr(torch, DTYPES[entry["dtype"]])
            tensors[name] = memory[first:last].view(dtype).view(entry["shape"])
    return tensors


def _map(module: nn.Module, path: Path, stays: Callable[[str], bool]) -> None:
    """Replaces the tensors of a module that wait in main memory by the same tensors in
    the mapped file."""
    with path.open("rb") as file:
        header = read_header(file)
        begin = file.tell()
    header = {
        name: entry
        for name, entry in header.items()
        if name != METADATA and stays(name)
    }
    if header:
        tensors = _views(header, mapped_bytes(path)[begin:])
        module.load_state_dict(tensors, strict=False, assign=True)
        malloc_trim()  # their former memory goes back to the system
