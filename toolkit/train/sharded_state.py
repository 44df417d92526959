"""The rows of sharded tensors in a checkpoint: each rank writes and reads its own, by
torch.distributed.checkpoint.

Its files (`.metadata`, `__<rank>_<number>.distcp`) are in the checkpoint's folder next
to the safetensors files, and in its manifest. They do not depend on the number of
ranks: any number can read them, including one. Names are `<file stem>/<role>/<key>`, as
the other tensors have them within their files.

Called by `checkpoint_state` alone.
"""

from __future__ import annotations

import logging
import operator
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pickle import Unpickler, UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from toolkit.errors import RunError
from toolkit.files.writing import os_error_as_run_error, sha256_of
from toolkit.system.distributed import POLL_INTERVAL_S, ProcessGroup
from toolkit.system.sharded_param import RowShard

if TYPE_CHECKING:
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.api import CheckpointException

METADATA = ".metadata"

SEEN_WITHIN_S = 60.0
"""Seconds in which a network volume shows one machine what another has written."""

# What it says of overlapping copies and shared storages does not concern a user.
logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Rows:
    """This rank's rows of a tensor.

    >>> rows = Rows(torch.zeros(2, 4), RowShard((4, 4), start=0, stop=2))
    >>> rows.full_bytes
    64
    """

    tensor: Tensor
    shard: RowShard

    @property
    def full_bytes(self) -> int:
        """Bytes of the tensor, on all ranks."""
        return int(torch.Size(self.shard.shape).numel()) * self.tensor.element_size()


def write_rows(
    process_group: ProcessGroup, folder: Path, rows: Mapping[str, Rows]
) -> dict[str, dict[str, Any]]:
    """Writes and flushes the rows of all ranks into `folder`, which exists; a
    collective. The size and sha256 of each file by its name: what a manifest has.

    Raises RunError on all ranks when one of them cannot write.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    writer = dcp.FileSystemWriter(folder, sync_files=True)
    tensors = {
        name: _distributed(process_group, part.tensor.detach(), part.shard)
        for name, part in rows.items()
    }
    with os_error_as_run_error(folder.parent):
        try:
            process_group.run_collective(dcp.save, tensors, storage_writer=writer)
        except CheckpointException as error:  # no Exception
            raise RunError(
                f"{folder.parent}: the state could not be saved: {_reason(error)}"
            ) from error
        metadata = [folder / METADATA] if process_group.is_main_process else []
        files = [*folder.glob(f"__{process_group.rank}_*"), *metadata]
        entries = {
            file.name: {"size": file.stat().st_size, "sha256": sha256_of(file)}
            for file in files
        }
    of_all = process_group.all_gather_object(entries)
    if process_group.is_main_process:
        for rank, written in enumerate(of_all):
            _wait_for_files(folder, rank, written)
    return {name: entry for written in of_all for name, entry in written.items()}


def _wait_for_files(
    folder: Path, rank: int, written: Mapping[str, Mapping[str, Any]]
) -> None:
    """Returns once the files of a rank are seen here. Raises RunError where they are
    not: older states, which a state without them must not replace, stay."""
    until = time.monotonic() + SEEN_WITHIN_S
    while unseen := [name for name in written if not (folder / name).is_file()]:
        if time.monotonic() > until:
            raise RunError(
                f"{folder.parent}: process {rank} has written {unseen[0]} of a state, and process 0 does not see it. "
                "All machines need the same training_folder: give one that they share."
            )
        time.sleep(POLL_INTERVAL_S)


def shapes_of_rows(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors that a checkpoint has as rows; empty where it has
    none."""
    return {name: tuple(saved.size) for name, saved in _metadata(folder).items()}


def read_rows(
    folder: Path, wanted: Mapping[str, RowShard | None], process_group: ProcessGroup
) -> dict[str, Tensor]:
    """Tensors of a checkpoint, on the CPU: the rows of this rank where a shard is
    given, else all. No collective."""
    if not wanted:
        return {}
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    metadata = _metadata(folder)
    loaded = {}
    tensors = {}
    for name, shard in wanted.items():
        saved = metadata[name]
        rows = saved.size[0] if shard is None else shard.stop - shard.start
        loaded[name] = torch.empty(rows, *saved.size[1:], dtype=saved.properties.dtype)
        tensors[name] = (
            loaded[name]
            if shard is None
            else _distributed(process_group, loaded[name], shard)
        )
    with warnings.catch_warnings():
        # PyTorch warns that one process reads the files of several.
        warnings.simplefilter("ignore", UserWarning)
        try:
            dcp.load(tensors, storage_reader=_reader(folder), no_dist=True)
        except CheckpointException as error:
            raise RunError(
                f"{folder}: cannot be read: {_reason(error)}. Move the state away."
            ) from error
    return loaded


def _reason(error: CheckpointException) -> str:
    """The reason of a failure, without the lines in which PyTorch says where it was."""
    texts = []
    for failure in error.failures.values():
        text = str(failure[0]) or type(failure[0]).__name__
        texts.append(text.partition("\n")[0].rstrip(". "))
    return "; ".join(dict.fromkeys(texts))


def _metadata(folder: Path) -> dict[str, Any]:
    if (folder / METADATA).is_file():
        return dict(_reader(folder).read_metadata().state_dict_metadata)
    return {}


def _reader(folder: Path) -> FileSystemReader:
    import torch.distributed.checkpoint as dcp

    class Reader(dcp.FileSystemReader):
        """PyTorch's own would run whatever code `.metadata`, a pickle, names.

        Example::

            metadata = _reader(folder).read_metadata()
        """

        def read_metadata(self, *_: Any, **__: Any) -> dcp.Metadata:
            path = folder / METADATA
            try:
                with path.open("rb") as file:
                    metadata: dcp.Metadata = _MetadataUnpickler(file).load()
            except (UnpicklingError, EOFError, ImportError) as error:
                raise RunError(
                    f"{path}: {error}. Nothing of it was used. Move the state away."
                ) from error
            return metadata

    return Reader(folder)


class _MetadataUnpickler(Unpickler):
    """Makes only the objects that the metadata of tensors consists of."""

    def find_class(self, module: str, name: str) -> Any:
        """Called for whatever the pickle names, before anything is done with it."""
        if (module, name) not in _needed():
            raise UnpicklingError(
                f"names {module}.{name}, of which the metadata of a state has no need"
            )
        return _needed()[module, name]


@cache
def _needed() -> dict[tuple[str, str], Any]:
    """(module, name) in the pickle -> what it stands for."""
    from torch.distributed.checkpoint import filesystem, metadata

    of_metadata = (
        "Metadata",
        "TensorStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "MetadataIndex",
    )
    dtypes = [
        name for name, value in vars(torch).items() if isinstance(value, torch.dtype)
    ]
    names = {
        metadata: (*of_metadata, "StorageMeta", "_MEM_FORMAT_ENCODING"),
        filesystem: ("_StorageInfo",),
        torch.serialization: ("_get_layout",),
        torch: ("Size", *dtypes),
    }
    objects = {
        (module.__name__, name): getattr(module, name)
        for module in names
        for name in names[module]
    }
    # The folder that was written to, which nobody reads. Python 3.13 has another name
    # for its class.
    for module_name in ("pathlib", "pathlib._local"):
        objects[module_name, "PosixPath"] = Path
    # Python 3.11.2 names a member of an enum so; this gets no attribute of anything.
    objects["builtins", "getattr"] = operator.getitem
    return objects


def _distributed(process_group: ProcessGroup, rows: Tensor, shard: RowShard) -> Tensor:
    """The full tensor as PyTorch's type for sharded tensors (`DTensor`). It shares the
    memory of `rows`, which are the rows of this rank."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh(rows.device.type, (process_group.world_size,))
    strides = torch.empty(shard.shape, device="meta").stride()
    return DTensor.from_local(
        rows,
        mesh,
        [Shard(0)],
        run_check=False,
        shape=torch.Size(shard.shape),
        stride=strides,
    )
