"""The estimated peak memory of a job, phase by phase, and the machine that it is
compared with. Imports no torch.

GB are powers of 1000 here and in printed lines. A GPU of N GB counts as N of them: it
has 7 % more, which the desktop and fragmentation use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from toolkit.memory.estimate import GB, StepShape, gigabytes
from toolkit.system.host_memory import free_host_memory
from toolkit.system.nvidia import gpu_of_job

GPU_SIZES_GB = (4, 6, 8, 12, 16, 24, 48, 80)
"""GPU sizes in GB that an estimate is compared with."""

CUDA_CONTEXT = int(0.7 * GB)
"""Bytes on the GPU besides tensors: CUDA context, kernels, workspaces of the
libraries."""

PROCESS_BASELINE = int(0.36 * GB)
"""Bytes of the interpreter and the libraries with a CPU build of PyTorch; measured, see
docs/memory.md."""

PROCESS_BASELINE_WITH_CUDA = int(2.5 * GB)
"""The same with a CUDA build; an assumption."""

TOLERANCE = 0.05
"""By how much of the memory that is there an estimate may exceed it: the estimate may
be off by as much (docs/memory.md)."""

HOST_GAPS = {"none": 0.8, "cheap": 1.4}
"""Level -> the share of the activations that glibc's allocator holds besides in main
memory. Blocks that are computed again leave more gaps. Measured, see docs/memory.md."""

HOST_GAPS_RECOMPUTED = 1.9
"""The same for all other levels, and for encoders and samples."""

HOST_GAPS_LARGE, HOST_GAPS_AT_MOST = 0.4, int(0.2 * GB)
"""Share and bytes that gaps do not exceed together: tensors of 32 MB and more are given
back at once."""

HOST_HELD_OF_LARGE = 0.1 * GB
"""Bytes of freed weights that stay with the process if layers are large. Measured, see
docs/memory.md."""

LARGE_LAYER = 32 * 2**20
"""Bytes that glibc 2.36 always gives back at once (`DEFAULT_MMAP_THRESHOLD_MAX`)."""


def gaps_on_host(activations: float, level: str = "full") -> float:
    """Bytes that glibc's allocator holds in addition to so many bytes of activations.

    >>> gaps_on_host(2e9)
    1000000000.0
    """
    share = HOST_GAPS.get(level, HOST_GAPS_RECOMPUTED)
    most = HOST_GAPS_LARGE * activations + HOST_GAPS_AT_MOST
    return min(share * activations, most)


def held_of(freed: float, layer: int) -> float:
    """Bytes that glibc's allocator holds of so many that loading has freed: of large
    layers few. layer: bytes of the largest.

    >>> held_of(2e9, layer=56_000_000)
    100000000.0
    """
    held = freed if layer < LARGE_LAYER else min(freed, HOST_HELD_OF_LARGE)
    return max(0.0, held)


@dataclass(frozen=True)
class Machine:
    """The device type of a job, and its memory.

    >>> machine = Machine("cuda", limit=24 * GB, capability=8)
    >>> gigabytes(machine.limit)
    '24.0 GB'
    """

    kind: Literal["cuda", "cpu"]
    limit: int | None = None
    """Bytes of memory; None: not known."""

    capability: int | None = None
    """Major compute capability of a GPU; None: not known."""

    gpu: str = ""
    """The driver's name of the GPU; empty: there is none, or it is not known."""

    asked: str = ""
    """The card of `--card` with its article; empty: this is the machine here."""


def machine_from_config(device: str) -> Machine:
    """The machine that a config's `device` means, where that is known without torch:
    `auto` is a GPU.

    "cpu" and "mps" give a CPU, with the free main memory as its limit. All others give
    a GPU with the memory that the driver knows.

    >>> machine_from_config("auto").kind
    'cuda'
    """
    if device in ("cpu", "mps"):
        return Machine("cpu", free_host_memory() or None)
    gpu = gpu_of_job(device)
    return Machine("cuda", gpu.memory or None, gpu.capability or None, gpu.name)


def machine_of(device: str) -> Machine:
    """The machine that a config's `device` is. Imports torch."""
    from torch.cuda import get_device_capability as capability

    from toolkit.system.device import pick_device, total_memory

    torch_device = pick_device(device, quiet=True)
    if torch_device.type != "cuda":
        return machine_from_config("cpu")
    memory = total_memory(torch_device)
    gpu = gpu_of_job(device).name
    return Machine("cuda", memory, capability(torch_device)[0], gpu)


class Part(StrEnum):
    """A consumer of memory, by its name in the plan and in `--dry-run --json`.

    >>> Part("gaps") is Part.GAPS
    True
    """

    CONTEXT = "context"
    PROCESS = "process baseline"
    WEIGHTS = "weights"
    WHOLE_BLOCKS = "whole blocks"
    FILE = "model file"
    QUANTIZED_BLOCK = "one block, quantized"
    LOADED_BLOCK = "one block, loaded"
    SWAPPED_BLOCKS = "swapped blocks"
    TABLE = "modulation table"
    TABLE_WEIGHTS = "weights of the table"
    VAE = "VAE"
    TEXT = "text encoder"
    TEXT_LAYER = "one layer of the text encoder"
    TEXT_READ = "text encoder, read"
    ACTIVATIONS = "activations"
    GAPS = "gaps"
    OFFLOADED = "activations, offloaded"
    ENCODING_AHEAD = "encoding ahead"
    FILES_BESIDE = "LoRA files beside it"
    GRADIENTS = "gradients"
    BLOCK_GRADIENTS = "gradients of a block"
    OPTIMIZER = "optimizer"
    TEMPORARIES = "optimizer temporaries"
    AVERAGE = "average"
    EMA_BACKUP = "weights saved while EMA is swapped in"
    SAVED = "copies to be saved"


def adapter_part(kind: str) -> str:
    """The name of the weights of an adapter.

    >>> adapter_part("lora")
    'lora weights'
    """
    return f"{kind} weights"


Bytes = dict[str, float]
"""Bytes by consumer: a `Part`, or an `adapter_part`."""

SHOWN: Mapping[str, str] = {
    Part.PROCESS: "the program itself",
    Part.GAPS: "unused memory between tensors",
}
"""Entry whose name is a term of the code -> its name in the line of a plan."""

NOT_OF_TENSORS = (Part.CONTEXT, Part.GAPS)
"""Entries that PyTorch does not count as allocated on a device."""


@dataclass(frozen=True)
class Phase:
    """Peak bytes of one phase of a job on the compute device, by consumer.

    >>> Phase("training", {"weights": 13_680, "lora weights": 590}).total
    14270
    """

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


ENCODING = "encoding"
"""The phase that is skipped where everything is cached already; the estimate does not
check the cache."""


@dataclass(frozen=True)
class LargestStep:
    """A step of one rank with its largest batch: what decides the level of
    `gradient_checkpointing: auto`.

    Example::

        step = plan_memory(section, groups, machine).step
        tokens = step.shape.tokens
    """

    shape: StepShape
    optimizer: int
    """Bytes of the optimizer's state."""

    beside: int
    """Further bytes while gradients are computed: an optimizer's temporaries, whole
    blocks of a sharded model."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one rank of a job.

    >>> training = Phase("training", {"weights": 13 * GB, "gaps": 1 * GB})
    >>> estimate = MemoryEstimate((training,), on_device=True)
    >>> estimate.peak.name, estimate.card()
    ('training', 16)
    """

    phases: tuple[Phase, ...]
    on_device: bool
    """False: it runs on the CPU, and everything is in main memory."""

    host: Mapping[str, int] = field(default_factory=dict)
    """Peak bytes of main memory of a job on a device, by consumer; on the CPU empty."""

    notes: tuple[str, ...] = ()
    """Lines for the user about what the numbers include."""

    mapped: int = 0
    """Bytes of waiting weights that are in the file of the kept model; `host` counts
    only the window that they pass through."""

    pinned_blocks: int = 0
    """Waiting blocks of it that are pinned too, where the free main memory has room for
    them; `host` does not count them."""

    from_disk: bool = False
    """Whether the free main memory has no room for `mapped` beside the job."""

    modulation_table: bool = False
    """Whether the numbers are those with `model.modulation_table`."""

    step: LargestStep | None = None
    """None where a trainer chooses no level by it."""

    level: str = ""
    """The level of checkpointing that the numbers belong to."""

    sizes_gb: tuple[int, ...] | None = None
    """Those of `GPU_SIZES_GB` that the job fits, where each has a level of its own;
    None: those that this peak fits."""

    @property
    def peak(self) -> Phase:
        """The phase that takes most; the first of equal ones. Raises ValueError without
        a phase."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def peak_bytes(self) -> int:
        """Peak in the memory of the compute device, in bytes. On the CPU this is main
        memory."""
        return self.peak.total

    @property
    def host_bytes(self) -> int:
        """Peak in main memory, in bytes."""
        return sum(self.host.values()) if self.on_device else self.peak_bytes

    def allocated(self, *names: str) -> int:
        """Peak of tensors in these phases on the compute device, in bytes; on the CPU
        with the process baseline.

        names: of phases; those that the job does not have are ignored. 0 where none is
        left.
        """
        left_out = NOT_OF_TENSORS if self.on_device else ()
        phases = [phase for phase in self.phases if phase.name in names]
        return max(
            (p.total - sum(p.parts.get(part, 0) for part in left_out) for p in phases),
            default=0,
        )

    def fitting(self) -> list[int]:
        """GB of the GPUs that the job fits, the smallest first; none on the CPU."""
        if not self.on_device:
            return []
        if self.sizes_gb is not None:
            return list(self.sizes_gb)
        return [size for size in GPU_SIZES_GB if self.peak_bytes <= size * GB]

    def card(self) -> int | None:
        """GB of the smallest GPU that the job fits; None where there is none, or no GPU
        is needed."""
        return next(iter(self.fitting()), None)

    def render(
        self, gpu: str = "the GPU", limit: int | None = None, brief: bool = False
    ) -> str:
        """One line for the plan of a run. gpu: what the device is called, such as "a
        GPU" where none is here. limit: the bytes of its memory; None: not known. brief:
        without what takes it."""
        shares = f" ({_shares(self.peak.name, self.peak.parts)})" if not brief else ""
        if not self.on_device:
            return f"memory: peak {gigabytes(self.peak_bytes)}{shares}"
        card = self.card()
        fits = (
            f"fits {gpu_of(card)}"
            if card
            else f"does not fit {', '.join(map(str, GPU_SIZES_GB))} GB GPUs"
        )
        if limit is not None:
            here = f"{fit(self.peak_bytes, limit)} its {gigabytes(limit)}"
            fits = here if self.peak_bytes <= limit else f"{here}, {fits}"
        return (
            f"memory: peak {gigabytes(self.peak_bytes)} on {gpu}{shares}: {fits}; "
            f"{gigabytes(self.host_bytes)} of main memory"
        )

    def to_json(self) -> dict[str, Any]:
        """The entry `memory` of `--dry-run --json`; all sizes in bytes. The keys
        `device_bytes`, `device_phase` and `fits_cards_gb` are left out on the CPU."""
        device = {
            "device_bytes": self.peak_bytes,
            "device_phase": self.peak.name,
            "fits_cards_gb": self.fitting(),
        }
        return {
            **(device if self.on_device else {}),
            "host_bytes": self.host_bytes,
            "phases": {phase.name: dict(phase.parts) for phase in self.phases},
            "notes": list(self.notes),
        }


Fit = Literal["fits", "may not fit", "does not fit"]


def fit(peak: int, limit: int | None) -> Fit:
    """Whether a peak fits a memory, both in bytes. What does not fit is not started, and
    has no time. A limit that is not known (None) fits.

    >>> fit(7 * GB, 8 * GB), fit(int(8.2 * GB), 8 * GB), fit(9 * GB, 8 * GB)
    ('fits', 'may not fit', 'does not fit')
    """
    if limit is None or peak <= limit:
        return "fits"
    return "may not fit" if peak <= (1 + TOLERANCE) * limit else "does not fit"


def positive(parts: Mapping[str, float]) -> dict[str, int]:
    """The parts in whole bytes, rounded down, without those of less than one byte.

    >>> positive({"weights": 2.5, "gaps": 0.5})
    {'weights': 2}
    """
    return {str(name): int(size) for name, size in parts.items() if int(size) > 0}


def _shares(phase: str, parts: Mapping[str, int], most: int = 4) -> str:
    """The phase and its largest consumers."""
    least = 0.01 * sum(parts.values())
    largest = sorted(parts.items(), key=lambda part: -part[1])[:most]
    shown = [
        f"{SHOWN.get(name, name)} {gigabytes(size, unit='')}"
        for name, size in largest
        if size >= least
    ]
    return f"{phase}{', if not cached yet' if phase == ENCODING else ''}: {', '.join(shown)}"


def gpu_of(size: int) -> str:
    """A GPU of so many GB, with its article.

    >>> gpu_of(24), gpu_of(80)
    ('a 24 GB GPU', 'an 80 GB GPU')
    """
    return f"{'an' if str(size).startswith('8') else 'a'} {size} GB GPU"
