"""Which device the work runs on, and the number types that configs name."""

from __future__ import annotations

from collections.abc import Callable

import torch


def pick_device(wanted: str, note: Callable[[str], None] = print) -> torch.device:
    """The device named by the config: `cuda:0`, `cpu`, `mps`, or `auto` for the best there is.

    Without the wanted accelerator: one warning, then the CPU.
    """
    if wanted == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        note(f"device: {wanted} is not there ({torch.cuda.device_count()} CUDA devices); using the CPU.")
        return torch.device("cpu")
    if device.type == "mps" and not _has_mps():
        note("device: mps is not there; using the CPU.")
        return torch.device("cpu")
    return device


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
"""By the normalised names of `train.dtype` (computing) and `save.dtype` (files)."""
