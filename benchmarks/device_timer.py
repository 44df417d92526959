"""Time and memory on any device: CUDA's own events and counters there, the clock
elsewhere."""

from __future__ import annotations

import time
from itertools import pairwise

import torch

GB = 1e9


class Marks:
    """Moments in the device's work. Setting one waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list = []

    def __len__(self) -> int:
        return len(self._marks)

    def set(self) -> None:
        """The moment when the device has done all it was given so far."""
        if self._on_gpu:
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def seconds(self, wait: bool = True) -> list[float]:
        """Between each two moments; waits for the last, or leaves out those that the
        device has not reached."""
        if not self._on_gpu:
            return [end - begin for begin, end in pairwise(self._marks)]
        if wait and self._marks:
            self._marks[-1].synchronize()
        reached = [mark for mark in self._marks if mark.query()]
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairwise(reached)]


def finish(device: torch.device) -> None:
    """Waits until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peaks(device: torch.device) -> None:
    """Peaks are of what comes from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device) -> dict[str, float | None]:
    """GB (1e9) since `forget_peaks`: of tensors, and what PyTorch kept for them. None
    where nothing counts it."""
    if device.type != "cuda":
        return {"allocated_gb": None, "reserved_gb": None}
    return {
        "allocated_gb": torch.cuda.max_memory_allocated(device) / GB,
        "reserved_gb": torch.cuda.max_memory_reserved(device) / GB,
    }


def limit_memory(device: torch.device, gib: float) -> bool:
    """PyTorch takes at most so much of the device from now on, as on a smaller GPU.
    False where that cannot be had."""
    if device.type != "cuda":
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total), device)
    return True
