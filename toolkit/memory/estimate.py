"""The most memory a job takes at once, phase by phase, by arithmetic alone. Imports no torch.

GB are powers of 1000 here and in what is printed. A GPU of N GB is taken to hold N of them: it has 7 % more, which
the desktop and the gaps between tensors use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GB = 10**9
GPU_SIZES_GB = (12, 16, 24, 48, 80)
"""GB of the GPUs that a plan is held against."""

CUDA_CONTEXT = int(0.7 * GB)
"""On the device beside all tensors: the driver's own, kernels, workspaces of the libraries."""

PROCESS_BASELINE = int(0.44 * GB)
"""Of the interpreter and the libraries on a CPU build of PyTorch; measured, see docs/memory.md."""

PROGRAM_WITH_CUDA = int(2.5 * GB)
"""The same on a CUDA build; an assumption."""

HOST_FRAGMENTATION = 1.5
"""Of activations in the CPU memory: glibc keeps the holes between tensors. Measured, see docs/memory.md."""

NOT_OF_TENSORS = ("context", "gaps")
"""Parts that PyTorch does not count as allocated on a device."""


@dataclass(frozen=True)
class Phase:
    """Bytes at the worst moment of one part of a job, by what takes them."""

    name: str
    device: Mapping[str, int]
    host: Mapping[str, int]


ENCODING = "encoding"
"""The phase that is left out where everything is in the cache; a plan does not look there."""


@dataclass(frozen=True)
class MemoryEstimate:
    """What one process of a job takes. On the CPU everything is in the CPU memory, and nothing on a device."""

    phases: tuple[Phase, ...]
    on_device: bool
    notes: tuple[str, ...] = ()
    """Lines for the user: what the numbers are of, and what is not in them."""

    @property
    def device(self) -> Phase:
        """The phase that takes most on the device."""
        return max(self.phases, key=lambda phase: sum(phase.device.values()))

    @property
    def host(self) -> Phase:
        """The phase that takes most in the CPU memory."""
        return max(self.phases, key=lambda phase: sum(phase.host.values()))

    @property
    def device_bytes(self) -> int:
        return sum(self.device.device.values())

    @property
    def host_bytes(self) -> int:
        return sum(self.host.host.values())

    @property
    def peak_bytes(self) -> int:
        """Where the computing is done."""
        return self.device_bytes if self.on_device else self.host_bytes

    def allocated(self, *names: str) -> int:
        """The most that tensors take in these phases, where the computing is done; on the CPU with the program."""
        phases = [phase for phase in self.phases if phase.name in names]
        if not self.on_device:
            return max((sum(phase.host.values()) for phase in phases), default=0)
        left_out = [sum(phase.device.get(part, 0) for part in NOT_OF_TENSORS) for phase in phases]
        return max((sum(p.device.values()) - less for p, less in zip(phases, left_out, strict=True)), default=0)

    def card(self) -> int | None:
        """GB of the smallest GPU it fits; None where there is none, or no GPU is needed."""
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
    """The phase and its largest parts."""
    least = 0.01 * sum(parts.values())
    largest = sorted(parts.items(), key=lambda part: -part[1])[:most]
    shown = [f"{name} {gigabytes(size, unit='')}" for name, size in largest if size >= least]
    return f"{_said(phase)}: {', '.join(shown)}"


def _said(phase: str) -> str:
    return f"{phase}, if not cached yet" if phase == ENCODING else phase


def gigabytes(size: float, unit: str = " GB") -> str:
    """Bytes in GB, with two digits behind the point below 1."""
    value = size / GB
    return (f"{value:.1f}" if value >= 1 else f"{value:.2f}") + unit


# ------------------------------------------------------------ what would make it smaller


@dataclass(frozen=True)
class Saving:
    """A change of the job and what it saves after those before it."""

    words: str
    size: int


def suggest(plan: MemoryEstimate, limit: int, savings: Sequence[Saving]) -> str:
    """What to change so that a plan fits `limit` bytes, or that nothing does."""
    left = plan.peak_bytes - sum(saving.size for saving in savings)
    named = ", ".join(f"{saving.words} saves {gigabytes(saving.size)}" for saving in savings)
    if left <= limit:
        return f"{named}; then {gigabytes(left)}"
    return f"no setting saves enough{f': with {named}, it is still {gigabytes(left)}' if named else ''}"
