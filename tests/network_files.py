"""Files of networks as a job writes them."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from toolkit.networks.save import write_safetensors_verified
from toolkit.system.device import to_cpu_copies


def save_network(
    path: Path, tensors: Mapping[str, Tensor], dtype: str, metadata: Mapping[str, str]
) -> None:
    """Writes `tensors` in `dtype`, a key of DTYPES, and reads them back."""
    write_safetensors_verified(path, to_cpu_copies(tensors, dtype), metadata)
