"""Keeps a model's quantized transformer on the disk, so that the next start reads it
instead of the published weights.

An entry is a folder in `_cache/models`. Its name stands for its origin: content of the
weights, type of the quantized ones, merged files, version of the rule. It has a
safetensors file for each block, one for the other weights, and MANIFEST, which lists
the files with their sizes and the checksums of all their bytes. It is written under a
temporary name, so it exists completely or not at all. The list is compared before a
file is used, so that whatever is wrong with an entry has one answer: it is deleted and
made again.

Blocks that wait in main memory are mapped: they are read where they are copied to the
device, and take no memory of the process. This is also true for the start that writes
the entry. Where the disk maps no files, they stay in main memory.

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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from toolkit.errors import RunError, first_line
from toolkit.files.mapped import mapped_bytes, will_be_at
from toolkit.files.safetensors_io import METADATA, framed, read_header
from toolkit.files.writing import (
    TEMP_FILE_GLOB,
    atomic_write_dir,
    files_in,
    folder_lock,
    free_space,
    fsync,
    locked,
    open_regular,
    read_object,
    readable_size,
    remove,
    short,
    write_json,
)
from toolkit.shortage import shortage
from toolkit.system import signals
from toolkit.system.host_memory import malloc_trim

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

MODELS = "models"
"""The folder of the entries, in the cache of a training folder."""

MANIFEST = "kept.json"
MOST_MANIFEST = 2**20
"""Bytes; that of 60 blocks has 6 thousand."""

REST = "rest"
"""Name of the file with the weights outside of the blocks."""

LEAST_FREE = 10 * 10**9
"""Bytes of the disk that entries leave free."""

ALIGNMENT = 256
"""Bytes; the same as for tensors in a block that waits (`toolkit.memory.offload`)."""

PAGE = 4096
PORTION = 2**24
"""Bytes that are read at a time."""

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
    """An entry cannot be used; the message says what it is."""


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
            model = str(_listed(folder).get("model", ""))
            entries.append(KeptEntry(folder, size, used, model))
    return sorted(entries, key=lambda entry: entry.used)


def _listed(folder: Path) -> dict[str, Any]:
    """What MANIFEST of an entry says; empty where it is damaged. Raises OSError where it
    is gone."""
    manifest = folder / MANIFEST
    return read_object(manifest) if manifest.stat().st_size <= MOST_MANIFEST else {}


def why_not_kept(cache: Path, needed: int) -> str:
    """The reason why a new entry of this many bytes is not written. Empty: it is."""
    return _room_for(cache, needed)[1]


def _room_for(
    cache: Path, needed: int, entry_folder: Path | None = None
) -> tuple[list[KeptEntry], str]:
    """The entries that are deleted to make room, and the reason where even that is not
    enough. entry_folder: of an entry that stays."""
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
        """Whether there is an entry. A damaged one counts too, and so does anything
        else in its place."""
        return os.path.lexists(self.folder)

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
                entry.compare_files()
                model = read(entry)
            except DamagedEntryError as error:
                logger.warning(
                    f"{short(self.folder)}: the kept model is {error}, it is made again"
                )
                entry = self._begin() if self._remove() else None
            else:
                logger.info(
                    f"transformer: read from {short(self.folder)} ({readable_size(entry.bytes)}), as it was quantized"
                )
                return model
        if entry is None:
            return make(None)
        with entry:
            return make(entry)

    def _begin(self) -> KeptReader | KeptWriter | None:
        """The reader of the entry, or its writer. None where it cannot be written. It
        waits for another process that writes the entry, unless a stop is requested."""
        waits = False
        while True:
            signals.check()
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

    def map(self, module: nn.Module, path: Path, stays: Callable[[str], bool]) -> None:
        """Maps the tensors of a module that wait from its file, which has the same
        bytes. Where that fails they stay in main memory, with one warning."""
        if not self.maps:
            return
        try:
            _map(module, path, self.folder / path.name, stays)
        except (OSError, ValueError, RuntimeError) as error:
            self.maps = False
            logger.warning(
                f"model.keep_quantized: files in {self.folder.parent} cannot be mapped ({_reason(error)}): blocks that "
                "wait (model.blocks_to_swap) take main memory"
            )

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
        entry.fill_rest(model, without=("transformer_blocks.",))
    """

    def __init__(self, entry: Kept) -> None:
        self._kept = entry
        self._files: dict[str, list[int]] = {}
        """Name of each file -> its bytes and checksum."""

        self.bytes = 0

    def compare_files(self) -> None:
        """Compares what is in the folder with the list in MANIFEST. Raises
        DamagedEntryError."""
        folder = self._kept.folder
        with _as_damage(folder / MANIFEST):
            listed = _listed(folder)
            if "crc32" not in listed:
                if "bytes" in listed:
                    raise DamagedEntryError("of an older version of this program")
                raise ValueError("it lists no files")
            self._files = dict(listed["crc32"])
            if listed["entry"] != folder.name:
                raise ValueError("it is of another model")
            for path in files_in(folder) ^ {MANIFEST, *self._files}:
                raise ValueError(
                    f"{path} {'is missing' if path in self._files else 'was added'}"
                )

    def fill(self, name: str, block: nn.Module, stays: Callable[[str], bool]) -> None:
        """Gives a block the weights that were written for it. Its own weights are not
        read. stays: whether the tensor of this name waits in main memory; such tensors
        are mapped. Raises DamagedEntryError."""
        path = _file(self._kept.folder, name)
        with _as_damage(path):
            layers, tensors = self._read(path)
            self._kept.restore(block, layers, tensors)
        del tensors
        self._kept.map(block, path, stays)

    def fill_rest(self, model: nn.Module, without: tuple[str, ...]) -> None:
        """Gives the model its weights outside of the blocks. without: beginnings of the
        blocks' names. Raises DamagedEntryError."""
        path = _file(self._kept.folder, REST)
        with _as_damage(path):
            _, tensors = self._read(path)
            loaded = model.load_state_dict(tensors, strict=False, assign=True)
            for name in loaded.missing_keys:
                if not name.startswith(without):
                    raise ValueError(f"it lacks {name}")
        with suppress(OSError):  # sets the time of the last use
            os.utime(self._kept.folder / MANIFEST)

    def _read(self, path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
        """Quantized layers and tensors of a file."""
        import torch

        size, checksum = self._files[path.name]
        with open_regular(path) as file:
            if path.is_symlink() or file.seek(0, os.SEEK_END) != size:
                raise ValueError("it is not the file that was written")
            memory = torch.empty(size, dtype=torch.uint8)
            file.seek(0)
            if _read_into(file, memory) != checksum:
                raise ValueError("its bytes are not those that were written")
            file.seek(0)
            header = read_header(file)
            begin = file.tell()
        self.bytes += size
        layers = json.loads(header.pop(METADATA)["layers"])
        return layers, _views(header, memory[begin:])


@contextmanager
def _as_damage(file: Path) -> Iterator[None]:
    """Any error inside the block is a DamagedEntryError, but memory or open files that
    the machine lacks: a RunError. file: the one that is read."""
    try:
        yield
    except DamagedEntryError:
        raise
    except Exception as error:
        short = shortage(error)
        if short:
            raise RunError(
                f"{file}: cannot be read: {short.what}. {short.remedy}."
            ) from error
        raise DamagedEntryError(f"damaged ({file.name}: {_reason(error)})") from error


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or first_line(error))[:100]


class KeptWriter:
    """Writes an entry file by file, inside a `with`. Where writing fails there is no
    entry, and a warning is logged.

    Example::

        with KeptWriter(kept) as entry:
            entry.add("transformer_blocks.0", block)
            entry.finish(model, without=("transformer_blocks.",))
    """

    def __init__(self, entry: Kept) -> None:
        """Makes the temporary folder. Raises RunError where it cannot be made."""
        self._kept = entry
        stack = ExitStack()
        self._temporary = stack.enter_context(atomic_write_dir(entry.folder))
        self._stack: ExitStack | None = stack
        self._files: dict[str, tuple[int, int]] = {}
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
            self._files[path.name] = _write(
                path, state, json.dumps(self._kept.describe(module))
            )
        except OSError as error:
            self._give_up(error)
            return
        del state
        self._flushed.append(self._flusher.submit(fsync, path))
        self._kept.map(module, path, stays)

    def finish(self, rest: nn.Module, without: tuple[str, ...]) -> None:
        """Writes the weights outside of the blocks, and puts the entry in its place.
        without: beginnings of the blocks' names."""
        if self._stack is None:
            return
        state = [
            (name, tensor)
            for name, tensor in rest.state_dict().items()
            if not name.startswith(without)
        ]
        try:
            path = _file(self._temporary, REST)
            self._files[path.name] = _write(path, state, "{}")
            fsync(path)
            for flushed in self._flushed:
                flushed.result()
            size = sum(size for size, _ in self._files.values())
            listed = {"entry": self._kept.folder.name, "crc32": self._files}
            write_json(
                self._temporary / MANIFEST,
                {"model": self._kept.model, "bytes": size, **listed},
            )
            self._stack.close()
        except (OSError, RunError) as error:
            self._give_up(error)
            return
        self._stack = None
        self._flusher.shutdown()
        logger.info(
            f"transformer: kept in {short(self._kept.folder)} ({readable_size(size)}) for the next start"
        )

    def _give_up(self, error: Exception) -> None:
        """Ends the writing. Tensors that are mapped stay mapped: their file has no name
        any more."""
        self._end()
        self._kept.say_not_kept(_reason(error))

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


def _write(
    path: Path, state: Iterable[tuple[str, Tensor]], layers: str
) -> tuple[int, int]:
    """Writes a safetensors file whose tensors begin at multiples of ALIGNMENT, the
    first one at a page. Returns its bytes, and their checksum."""
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
    header[METADATA] = {"layers": layers}
    frame = framed(json.dumps(header), PAGE)
    checksum = 0
    with path.open("wb", buffering=0) as file:
        for piece in (frame, *pieces):
            checksum = zlib.crc32(piece, checksum)
            view = memoryview(piece)
            while view.nbytes:
                view = view[file.write(view) :]
    return len(frame) + end, checksum


def _read_into(file: BinaryIO, memory: Tensor) -> int:
    """Fills the memory from a file. Returns the checksum of what it read."""
    checksum = 0
    left = memoryview(cast("Any", memory.numpy()))
    while left.nbytes:
        count = file.readinto(left[:PORTION])  # type: ignore[attr-defined]
        if not count:
            break
        checksum = zlib.crc32(left[:count], checksum)
        left = left[count:]
    return checksum


def _bytes_of(raw: Tensor) -> Any:
    import torch

    return raw.view(torch.uint8).numpy() if raw.numel() else b""


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


def _map(
    module: nn.Module, path: Path, known_as: Path, stays: Callable[[str], bool]
) -> None:
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
        mapped = mapped_bytes(path)
        will_be_at(mapped, known_as)
        tensors = _views(header, mapped[begin:])
        module.load_state_dict(tensors, strict=False, assign=True)
        malloc_trim()  # their former memory goes back to the system
