"""The estimated peak memory of a job, phase by phase, and the activation memory of a step at each checkpointing
level, by which `gradient_checkpointing: auto` is chosen too. Imports no torch.

`toolkit.networks.kinds.ActivationUnits` defines the unit of activations, and has the numbers for each kind of network.
GB are powers of 1000 here and in printed lines. A GPU of N GB counts as N of them: it has 7 % more, which the desktop
and fragmentation use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from toolkit.memory.flops import KERNELS_PER_BLOCK, LAUNCH_S, RECOMPUTED, WEIGHTS_PER_TOKEN
from toolkit.networks.kinds import KINDS, ActivationUnits, Pair
from toolkit.system.host_memory import free_host_memory

GAPS_SHARE, GAPS_AT_MOST, GAPS_OF_ALL = 0.08, 300_000_000, 0.04
"""What PyTorch's CUDA allocator reserves beyond the tensors: a share of the activations, bytes at most, and a share
where all are kept. Measured on an H100, see docs/memory.md."""

OF_ATTENTION, OF_INPUT = 2.02, 1
"""Units kept per block: attention output, its log-sum-exp and block input, and the block input alone."""

EXTRA_UNITS = {"full": 1, "full_offload": 3}
"""Extra units in the backward pass of a recomputed block, by checkpointing level: the gradient of its output.
`full_offload` also has the input of the first block and the prefetched input of the previous block on the device."""

COMPILED_AGAIN = 4
"""Further units of a compiled block that is recomputed in half precision."""

BESIDE_A_LAYER = 2
"""Units in the backward pass while a full layer is in memory in the compute dtype."""

FORWARD_BESIDE_A_LAYER = 3
"""Units of the forward peak that are not allocated at that moment."""

OF_DROPOUT = 12
"""Further units with input dropout of an adapter: each layer keeps its inputs and a mask."""

OF_INT8_PRODUCTS = 24
"""Further bytes per token and channel with W8A8: the quantized inputs, the int32 results."""


@dataclass(frozen=True)
class StepShape:
    """The numbers that determine the activation memory of a step."""

    tokens: int
    """Tokens of all items of the largest batch: images, control images and text."""

    width: int
    """Hidden size of the transformer: channels per token."""

    blocks: int
    number_bytes: int
    """2 in half precision, 4 in float32."""

    kind: str = "lora"
    """`network.type`."""

    units: ActivationUnits | None = None
    """Units of the model's blocks with this kind; None: those of `KINDS`."""

    dropout: bool = False
    largest_layer: int = 0
    """Number of weights of the largest linear layer that processes every token."""

    dequantized_bytes: float = 0
    """Bytes per weight of a quantized layer's copies in the compute dtype, while it is used."""

    casts: int = 0
    """Bytes of one block's trained parameters cast to the compute dtype; 0 where that is their own."""

    int8_products: bool = False
    gradients: int = 0
    """Bytes of all parameter gradients that are in memory at a time."""

    gradients_wait: bool = False
    """Whether gradients of an earlier micro-batch are in memory from the beginning (accumulation)."""

    compiled: bool = False
    """Whether the blocks are compiled: they keep what the partitioner saves."""

    def kept(self, level: str) -> int:
        """Bytes of activations that all blocks keep on the device for the backward pass."""
        return self.blocks * self._kept_by_block(level)

    def kept_on_host(self, level: str) -> int:
        """Bytes that `full_offload` keeps in CPU memory: the inputs of all blocks but the first and last."""
        return int(max(0, self.blocks - 2) * OF_INPUT * self._unit) if level == "full_offload" else 0

    def block_backward_bytes(self, level: str) -> int:
        """Bytes beyond `kept` in the backward pass of one block: the last one, which keeps all, or a recomputed one."""
        layer = (self.dequantized_bytes + self._of(self._units.change)) * self.largest_layer
        at_work = max(self._of(self._units.backward) * self._unit, layer and BESIDE_A_LAYER * self._unit + layer)
        # A compiled block that is recomputed takes what an eager one does, and more: measured, see docs/memory.md.
        everything = replace(self, compiled=self.compiled and level == "none")._kept_by_block("none")
        if self.compiled and level != "none" and self.number_bytes == 2:
            everything += COMPILED_AGAIN * self._unit
        beyond = everything - self._kept_by_block(level)
        return int(beyond + EXTRA_UNITS.get(level, 0) * self._unit + at_work + self._products)

    def forward(self) -> int:
        """Bytes of a forward pass without gradients."""
        most = self._of(self._units.forward) * self._unit
        layer = (self.dequantized_bytes + self._of(self._units.change_forward)) * self.largest_layer
        return int(max(most, layer and most - FORWARD_BESIDE_A_LAYER * self._unit + layer) + self._products)

    @property
    def _units(self) -> ActivationUnits:
        return self.units or KINDS[self.kind].units

    @property
    def _unit(self) -> int:
        return self.tokens * self.width * self.number_bytes

    @property
    def _products(self) -> int:
        return OF_INT8_PRODUCTS * self.width * self.tokens if self.int8_products else 0

    def _of(self, pair: Pair) -> float:
        return pair[self.number_bytes > 2]

    def _kept_by_block(self, level: str) -> int:
        of_block = self._units
        if level == "none":
            casts = self.casts if of_block.casts else 0
            everything = self._of(of_block.compiled if self.compiled else of_block.everything)
            return int((everything + OF_DROPOUT * self.dropout) * self._unit) + casts
        units = {
            "cheap": self._of(of_block.compiled_outputs if self.compiled else of_block.matmul_outputs),
            "keep_attention": OF_ATTENTION,
            "full": OF_INPUT,
            "full_offload": 0,
        }
        return int(units[level] * self._unit)


def gaps_on_gpu(activations: float, level: str = "full") -> float:
    """Bytes that the allocator of a GPU holds beside so many bytes of activations."""
    least = min(GAPS_SHARE * activations, GAPS_AT_MOST)
    return max(least, GAPS_OF_ALL * activations) if level == "none" else least


def step_peak(work: StepShape, level: str, gaps: Callable[[float], float] | None = None) -> tuple[int, int]:
    """Bytes of (activations, parameter gradients) at the peak of a forward and backward pass.

    In the backward pass gradients grow while activations shrink, so the peak is at its first block, at its last one, or
    at its end; with accumulation at the first block. gaps: fragmentation of so many bytes of activations, which decides
    where the peak is; the result is without it. None: that of a GPU.
    """
    gaps = gaps or partial(gaps_on_gpu, level=level)
    kept, block = work.kept(level), work.block_backward_bytes(level)
    if work.gradients_wait:
        return kept + block, work.gradients
    share = 1 / work.blocks
    moments = [
        (kept + block, 0),
        (int(block + share * kept), int((1 - share) * work.gradients)),
        (0, work.gradients),
    ]
    return max(moments, key=lambda moment: moment[0] + gaps(moment[0]) + moment[1])


def activation_bytes(level: str, work: StepShape) -> int:
    """Bytes of free device memory needed for a forward and backward pass: activations, fragmentation, gradients."""
    activations, gradients = step_peak(work, level)
    return activations + int(gaps_on_gpu(activations, level)) + gradients


HOST_SHARE = {"none": 0.55, "cheap": 1.65, "keep_attention": 1.6, "full": 1.0, "full_offload": 1.1}
"""The host's time for an uncompiled block by level, as a share of that of `full`: selective checkpointing asks Python
about every operation, twice. CPU time of blocks too small to compute, torch 2.13; `full_offload` is an assumption."""


def step_seconds(level: str, work: StepShape, flops: float) -> float:
    """Seconds that a micro-step takes at a level where blocks are not compiled: those of the GPU or those of the host,
    whichever are more. flops: of the GPU per second. Attention is left out, so the GPU's are too few for large images,
    where they are more than the host's anyway."""
    linear, _ = RECOMPUTED[level]
    of_gpu = 2 * WEIGHTS_PER_TOKEN * work.width**2 * work.tokens * (2 + linear) / flops
    return work.blocks * max(of_gpu, KERNELS_PER_BLOCK * LAUNCH_S * HOST_SHARE[level])


def fastest_level_that_fits(levels: Iterable[str], free: int, work: StepShape, flops: float | None = None) -> str:
    """The fastest of `levels` whose step fits into `free` bytes, or the last.

    levels: from the one that needs most to the one that needs least, which is their order of speed too where the host
    does not matter. flops: of the GPU per second, where it does (uncompiled blocks).
    """
    levels = list(levels)
    fitting = [level for level in levels if activation_bytes(level, work) <= free] or levels[-1:]
    return fitting[0] if flops is None else min(fitting, key=lambda level: step_seconds(level, work, flops))


GB = 10**9
GPU_SIZES_GB = (8, 12, 16, 24, 48, 80)
"""GPU sizes in GB that an estimate is compared with."""

CUDA_CONTEXT = int(0.7 * GB)
"""Bytes on the GPU besides tensors: CUDA context, kernels, workspaces of the libraries."""

PROCESS_BASELINE = int(0.44 * GB)
"""Bytes of the interpreter and the libraries with a CPU build of PyTorch; measured, see docs/memory.md."""

PROCESS_BASELINE_WITH_CUDA = int(2.5 * GB)
"""The same with a CUDA build; an assumption."""

HOST_FRAGMENTATION = 1.5
"""Factor on activations in CPU memory: fragmentation of glibc's allocator. Measured, see docs/memory.md."""


def gaps_on_host(activations: float, level: str = "full") -> float:
    """Bytes that glibc's allocator holds beside so many bytes of activations, at every level."""
    return (HOST_FRAGMENTATION - 1) * activations


@dataclass(frozen=True)
class Machine:
    """The device type of a job, and its memory."""

    kind: Literal["cuda", "cpu"]
    limit: int | None = None
    """Bytes of memory; None: not known."""

    capability: int | None = None
    """Major compute capability of a GPU; None: not known."""


def machine_from_config(device: str) -> Machine:
    """The machine a config's `device` means, as far as that is known without torch: `auto` is a GPU."""
    return Machine("cpu", free_host_memory() or None) if device in ("cpu", "mps") else Machine("cuda")


def machine_of(device: str) -> Machine:
    """The machine that a config's `device` is. Imports torch."""
    from torch.cuda import get_device_capability as capability

    from toolkit.system.device import pick_device, total_memory

    found = pick_device(device, quiet=True)
    if found.type != "cuda":
        return machine_from_config("cpu")
    return Machine("cuda", total_memory(found), capability(found)[0])


NOT_OF_TENSORS = ("context", "gaps")
"""Entries that PyTorch does not count as allocated on a device."""


@dataclass(frozen=True)
class Phase:
    """Peak bytes of one phase of a job on the compute device, by consumer."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


ENCODING = "encoding"
"""The phase that is skipped where everything is cached already; the estimate does not check the cache."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one rank of a job."""

    phases: tuple[Phase, ...]
    on_device: bool
    """False: it runs on the CPU, and everything is in main memory."""

    host: Mapping[str, int] = field(default_factory=dict)
    """Peak bytes of main memory beside a device, by consumer; on the CPU empty."""

    notes: tuple[str, ...] = ()
    """Lines for the user about what the numbers include."""

    modulation_table: bool = False
    """Whether the numbers are those with `model.modulation_table`."""

    @property
    def peak(self) -> Phase:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def peak_bytes(self) -> int:
        """Peak in the memory of the compute device."""
        return self.peak.total

    @property
    def device_bytes(self) -> int:
        """Peak on a device; 0 on the CPU."""
        return self.peak_bytes if self.on_device else 0

    @property
    def host_bytes(self) -> int:
        """Peak in main memory."""
        return sum(self.host.values()) if self.on_device else self.peak_bytes

    def allocated(self, *names: str) -> int:
        """Peak of tensors in these phases on the compute device; on the CPU with the process baseline."""
        left_out = NOT_OF_TENSORS if self.on_device else ()
        phases = [phase for phase in self.phases if phase.name in names]
        return max((p.total - sum(p.parts.get(part, 0) for part in left_out) for p in phases), default=0)

    def card(self) -> int | None:
        """GB of the smallest GPU that the job fits; None where there is none, or no GPU is needed."""
        if not self.on_device:
            return None
        return next((card for card in GPU_SIZES_GB if self.peak_bytes <= card * GB), None)

    def render(self) -> str:
        """One line for the plan of a run."""
        shares = _shares(self.peak.name, self.peak.parts)
        if not self.on_device:
            return f"memory: peak {gigabytes(self.peak_bytes)} ({shares})"
        card = self.card()
        fits = f"fits {gpu_of(card)}" if card else f"does not fit {', '.join(map(str, GPU_SIZES_GB))} GB GPUs"
        return (
            f"memory: peak {gigabytes(self.peak_bytes)} on the GPU ({shares}): {fits}; "
            f"{gigabytes(self.host_bytes)} of main memory"
        )

    def to_json(self) -> dict[str, Any]:
        """Bytes, for `--dry-run --json`."""
        device = {
            "device_bytes": self.peak_bytes,
            "device_phase": self.peak.name,
            "fits_cards_gb": [card for card in GPU_SIZES_GB if self.peak_bytes <= card * GB],
        }
        return {
            **(device if self.on_device else {}),
            "host_bytes": self.host_bytes,
            "phases": {phase.name: dict(phase.parts) for phase in self.phases},
            "notes": list(self.notes),
        }


def positive(parts: Mapping[str, float]) -> dict[str, int]:
    """Whole bytes, without what takes nothing."""
    return {name: int(size) for name, size in parts.items() if int(size) > 0}


def _shares(phase: str, parts: Mapping[str, int], most: int = 4) -> str:
    """The phase and its largest consumers."""
    least = 0.01 * sum(parts.values())
    largest = sorted(parts.items(), key=lambda part: -part[1])[:most]
    shown = [f"{name} {gigabytes(size, unit='')}" for name, size in largest if size >= least]
    return f"{phase}{', if not cached yet' if phase == ENCODING else ''}: {', '.join(shown)}"


def gpu_of(size: int) -> str:
    """A GPU of so many GB, with its article."""
    return f"{'an' if str(size).startswith('8') else 'a'} {size} GB GPU"


def gigabytes(size: float, unit: str = " GB") -> str:
    """Bytes in GB, with two decimals below 1."""
    value = size / GB
    return (f"{value:.1f}" if value >= 1 else f"{value:.2f}") + unit
