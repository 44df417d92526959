"""Files of networks as a job writes them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from toolkit.networks.save import write_safetensors_verified
from toolkit.system.device import to_cpu_copies


def save_network(
    path: Path, tensors: Mapping[str, Tensor], dtype: str, metadata: Mapping[str, str]
) -> None:
    """Writes `tensors` in `dtype`, a key of DTYPES, and reads them back."""
    write_safetensors_verified(path, to_cpu_copies(tensors, dtype), metadata)


def same_tensors(one: Path, two: Path) -> bool:
    """Whether two files of weights have the same tensors, bit by bit."""
    ours, theirs = load_file(one), load_file(two)
    return ours.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name]) for name, tensor in ours.items()
    )
