"""The estimated peak memory of a job, phase by phase. Imports no torch.

GB are powers of 1000 here and in printed lines. A GPU of N GB counts as N of them: it has 7 % more, which the desktop
and fragmentation use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GB = 10**9
GPU_SIZES_GB = (12, 16, 24, 48, 80)
"""GPU sizes in GB that an estimate is compared with."""

CUDA_CONTEXT = int(0.7 * GB)
"""Bytes on the GPU besides tensors: CUDA context, kernels, workspaces of the libraries."""

PROCESS_BASELINE = int(0.44 * GB)
"""Bytes of the interpreter and the libraries with a CPU build of PyTorch; measured, see docs/memory.md."""

PROCESS_BASELINE_WITH_CUDA = int(2.5 * GB)
"""The same with a CUDA build; an assumption."""

HOST_FRAGMENTATION = 1.5
"""Factor on activations in CPU memory: fragmentation of glibc's allocator. Measured, see docs/memory.md."""

NOT_OF_TENSORS = ("context", "gaps")
"""Entries that PyTorch does not count as allocated on a device."""


@dataclass(frozen=True)
class Phase:
    """Peak bytes of one phase of a job, by consumer."""

    name: str
    device: Mapping[str, int]
    host: Mapping[str, int]


ENCODING = "encoding"
"""The phase that is skipped where everything is cached already; the estimate does not check the cache."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one rank of a job. On the CPU everything is in CPU memory, and nothing on a device."""

    phases: tuple[Phase, ...]
    on_device: bool
    notes: tuple[str, ...] = ()
    """Lines for the user about what the numbers include."""

    @property
    def device(self) -> Phase:
        """The phase with the highest device memory."""
        return max(self.phases, key=lambda phase: sum(phase.device.values()))

    @property
    def host(self) -> Phase:
        """The phase with the highest CPU memory."""
        return max(self.phases, key=lambda phase: sum(phase.host.values()))

    @property
    def device_bytes(self) -> int:
        return sum(self.device.device.values())

    @property
    def host_bytes(self) -> int:
        return sum(self.host.host.values())

    @property
    def peak_bytes(self) -> int:
        """Peak in the memory of the compute device."""
        return self.device_bytes if self.on_device else self.host_bytes

    def allocated(self, *names: str) -> int:
        """Peak of tensors in these phases on the compute device; on the CPU with the process baseline."""
        phases = [phase for phase in self.phases if phase.name in names]
        if not self.on_device:
            return max((sum(phase.host.values()) for phase in phases), default=0)
        left_out = [sum(phase.device.get(part, 0) for part in NOT_OF_TENSORS) for phase in phases]
        return max((sum(p.device.values()) - less for p, less in zip(phases, left_out, strict=True)), default=0)

    def card(self) -> int | None:
        """GB of the smallest GPU that the job fits; None where there is none, or no GPU is needed."""
        if not self.on_device:
            return None
        return next((card for card in GPU_SIZES_GB if self.device_bytes <= card * GB), None)

    def render(self) -> str:
        """One line for the plan of a run."""
        if not self.on_device:
            return f"memory: peak {gigabytes(self.host_bytes)} ({_shares(self.host.name, self.host.host)})"
        card = self.card()
        fits = f"fits a {card} GB GPU" if card else f"does not fit {', '.join(map(str, GPU_SIZES_GB))} GB GPUs"
        peak = _shares(self.device.name, self.device.device)
        return (
            f"memory: peak {gigabytes(self.device_bytes)} on the GPU ({peak}): {fits}; "
            f"{gigabytes(self.host_bytes)} of main memory ({_said(self.host.name)})"
        )

    def to_json(self) -> dict[str, Any]:
        """Bytes, for `--dry-run --json`."""
        device = {
            "device_bytes": self.device_bytes,
            "device_phase": self.device.name,
            "fits_cards_gb": [card for card in GPU_SIZES_GB if self.device_bytes <= card * GB],
        }
        return {
            **(device if self.on_device else {}),
            "host_bytes": self.host_bytes,
            "host_phase": self.host.name,
            "phases": {p.name: {"device": dict(p.device), "host": dict(p.host)} for p in self.phases},
            "notes": list(self.notes),
        }


def _shares(phase: str, parts: Mapping[str, int], most: int = 4) -> str:
    """The phase and its largest consumers."""
    least = 0.01 * sum(parts.values())
    largest = sorted(parts.items(), key=lambda part: -part[1])[:most]
    shown = [f"{name} {gigabytes(size, unit='')}" for name, size in largest if size >= least]
    return f"{_said(phase)}: {', '.join(shown)}"


def _said(phase: str) -> str:
    return f"{phase}, if not cached yet" if phase == ENCODING else phase


def gigabytes(size: float, unit: str = " GB") -> str:
    """Bytes in GB, with two decimals below 1."""
    value = size / GB
    return (f"{value:.1f}" if value >= 1 else f"{value:.2f}") + unit


# ------------------------------------------------------------ suggestions


@dataclass(frozen=True)
class Saving:
    """A change of the job and what it saves in addition to those before it."""

    words: str
    size: int


def suggest(plan: MemoryEstimate, limit: int, savings: Sequence[Saving]) -> str:
    """A line of changes with which the job fits `limit` bytes, or that none does."""
    left = plan.peak_bytes - sum(saving.size for saving in savings)
    named = ", ".join(f"{saving.words} saves {gigabytes(saving.size)}" for saving in savings)
    if left <= limit:
        return f"{named}; then {gigabytes(left)}"
    return f"no setting saves enough{f': with {named}, it is still {gigabytes(left)}' if named else ''}"
