"""Writing safetensors files as other files are written, with usual rights and errors of the system; their metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def save_file(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """`safetensors.torch.save_file`, for everybody who may read new files here. Raises OSError when it cannot.

    Since 0.8 safetensors gives its files to the owner alone (mode 600): what root writes in a container could not be
    read by the user outside, nor by another program that runs as somebody else.
    """
    from safetensors import SafetensorError  # here, so that readers of a run need no torch
    from safetensors import torch as safetensors

    path.touch()
    usual = path.stat().st_mode
    try:
        safetensors.save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:  # it tells of a full disk in its own words
        raise OSError(str(error)) from error
    path.chmod(usual)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata in the header of a safetensors file, without torch or safetensors; empty when there is none.

    Reads the header alone. Raises OSError when the file cannot be read, ValueError when it has no whole header.
    Source of the format: 8 bytes of length, little endian, then so many bytes of JSON
    (https://github.com/huggingface/safetensors#format).
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:  # no safetensors file, or a part of one
            raise ValueError(f"{path}: its header is not whole")
        header = json.loads(file.read(length))
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: its header is not that of a safetensors file")
    return metadata
