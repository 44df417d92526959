"""Writing safetensors files as other files are written: with the usual rights, and errors of the system."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor


def save_file(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """`safetensors.torch.save_file`, for everybody who may read new files here. Raises OSError when it cannot.

    Since 0.8 safetensors gives its files to the owner alone (mode 600): what root writes in a container could not be
    read by the user outside, nor by another program that runs as somebody else.
    """
    path.touch()
    usual = path.stat().st_mode
    try:
        safetensors.save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:  # it tells of a full disk in its own words
        raise OSError(str(error)) from error
    path.chmod(usual)
