"""The most memory a job takes at once, phase by phase, by arithmetic alone. Imports no torch.

GB are powers of 1000 here and in what is printed. A card of N GB is taken to hold N of them: it has 7 % more, which
the desktop and the gaps between tensors use.

One unit of activations is the memory of what a block hands to the next: tokens x width numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.memory.activations import UNITS

GB = 10**9
CARDS = (12, 16, 24, 48, 80)
"""GB of the cards that a plan is held against."""

CUDA_CONTEXT = int(0.7 * GB)
"""On the device beside all tensors: the driver's own, kernels, workspaces of the libraries."""

PROGRAM = int(0.44 * GB)
"""Of the interpreter and the libraries on a CPU build of PyTorch; measured, see docs/memory.md."""

PROGRAM_WITH_CUDA = int(2.5 * GB)
"""The same on a CUDA build; an assumption."""

SLACK, SLACK_OF_HOST = 1.05, 1.5
"""Of activations: what an allocator holds beyond the tensors, PyTorch's on a device and glibc's, which keeps the holes
between them. Measured for glibc, see docs/memory.md."""


# ------------------------------------------------------------ activations

KEPT_BY_KIND = {"lora": (27.0, 22.9), "dora": (56.0, 45.0), "loha": (27.1, 25.0), "lokr": (36.7, 33.0)}
KEPT_BY_MODEL = (31.0, 25.7)
"""Units that a block of the model keeps for the backward pass without checkpointing, in half precision and in float32:
with an adapter of each kind on all its linear layers, and where the model itself is trained. Measured."""

OF_BACKWARD = 4.0
"""Units of gradients on the way back through a block."""

OF_FORWARD = 16.5
"""Units of a block whose results are not kept, as in sampling."""

OF_INT8_PRODUCTS = 24
"""Further bytes per token and unit of width where products are made in int8: the rounded inputs, the int32 results."""

OF_CHANGE = {"dora": 9, "loha": 15}
"""Bytes per weight of the largest layer, for kinds whose change of it is made as large as it is."""


@dataclass(frozen=True)
class Passes:
    """What decides the activations of the transformer."""

    kind: str
    """`network.type`."""

    level: str
    """Of checkpointing: a key of `activations.UNITS`."""

    number_bytes: int
    width: int
    blocks: int
    largest_layer: int
    """Weights of the largest linear layer."""

    expanded: float
    """Bytes per weight of a layer while it is used: of its copy in the type of the computation."""

    casts: int
    """Bytes of one block's trained weights in the type of the computation, where that is not their own."""

    int8_products: bool = False
    dropout: bool = False

    @property
    def unit(self) -> int:
        """Bytes per token of one unit."""
        return self.width * self.number_bytes

    def kept(self, tokens: int) -> int:
        """Bytes that all blocks keep on the device from the forward to the backward pass."""
        return self.blocks * self._kept_by_block(tokens, self.level)

    def of_one_block(self, tokens: int) -> int:
        """Bytes on top, while a block is computed again and goes backward."""
        beyond = self._kept_by_block(tokens, "none") - self._kept_by_block(tokens, self.level)
        return int(beyond + OF_BACKWARD * self.unit * tokens + self._workspace(tokens))

    def forward(self, tokens: int) -> int:
        """Bytes of a pass that keeps nothing."""
        return int(OF_FORWARD * self.unit * tokens + self._workspace(tokens))

    def kept_on_host(self, tokens: int) -> int:
        """Bytes of what `full_offload` keeps in the main memory."""
        return self.blocks * UNITS["full"] * self.unit * tokens if self.level == "full_offload" else 0

    def _kept_by_block(self, tokens: int, level: str) -> int:
        if level != "none":
            return UNITS[level] * self.unit * tokens
        units = KEPT_BY_KIND.get(self.kind, KEPT_BY_MODEL)[self.number_bytes > 2] + 12 * self.dropout
        return int(units * self.unit * tokens) + self.casts

    def _workspace(self, tokens: int) -> int:
        products = OF_INT8_PRODUCTS * self.width * tokens if self.int8_products else 0
        return int((self.expanded + OF_CHANGE.get(self.kind, 0)) * self.largest_layer) + products


def backward_peak(passes: Passes, tokens: int, gradients: int, waiting: bool, slack: float) -> tuple[int, int]:
    """Bytes of (activations, gradients) at the worst moment of a step.

    gradients: bytes of all. waiting: whether those of an earlier micro-batch are there from the beginning. Otherwise
    they come as activations go: the worst moment is the first block of the backward pass, its last one, or the end.
    """
    kept, block = slack * passes.kept(tokens), slack * passes.of_one_block(tokens)
    if waiting:
        return int(kept + block), gradients
    share = 1 / passes.blocks
    first = kept + (0 if passes.level == "none" else block)
    moments = [(int(first), 0), (int(block + share * kept), int((1 - share) * gradients)), (0, gradients)]
    return max(moments, key=sum)


# ------------------------------------------------------------ the plan


@dataclass(frozen=True)
class Phase:
    """Bytes at the worst moment of one part of a job, by what takes them."""

    name: str
    device: Mapping[str, int]
    host: Mapping[str, int]


@dataclass(frozen=True)
class MemoryPlan:
    """What a job takes. On the CPU everything is in the main memory, and nothing on a device."""

    phases: tuple[Phase, ...]
    on_device: bool

    @property
    def device(self) -> Phase:
        """The phase that takes most on the device."""
        return max(self.phases, key=lambda phase: sum(phase.device.values()))

    @property
    def host(self) -> Phase:
        """The phase that takes most in the main memory."""
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
        parts = [(p.device if self.on_device else p.host) for p in self.phases if p.name in names]
        return max((sum(part.values()) - part.get("context", 0) for part in parts), default=0)

    def card(self) -> int | None:
        """GB of the smallest card it fits; None where there is none, or no card is needed."""
        if not self.on_device:
            return None
        return next((card for card in CARDS if self.device_bytes <= card * GB), None)

    def render(self) -> str:
        """One line for the plan of a run."""
        if not self.on_device:
            return f"memory: {gigabytes(self.host_bytes)} at the peak ({_shares(self.host.name, self.host.host)})"
        card = self.card()
        fits = f"fits a {card} GB card" if card else f"fits none of {', '.join(map(str, CARDS))} GB cards"
        peak = _shares(self.device.name, self.device.device)
        return (
            f"memory: {gigabytes(self.device_bytes)} on the device at the peak ({peak}): {fits}; "
            f"{gigabytes(self.host_bytes)} of main memory ({self.host.name})"
        )

    def to_json(self) -> dict[str, Any]:
        """Bytes, for `--dry-run --json`."""
        device = {
            "device_bytes": self.device_bytes,
            "device_phase": self.device.name,
            "fits_cards_gb": [card for card in CARDS if self.device_bytes <= card * GB],
        }
        return {
            **(device if self.on_device else {}),
            "host_bytes": self.host_bytes,
            "host_phase": self.host.name,
            "phases": {p.name: {"device": dict(p.device), "host": dict(p.host)} for p in self.phases},
        }


def _shares(phase: str, parts: Mapping[str, int], most: int = 4) -> str:
    """The phase and its largest parts."""
    least = 0.01 * sum(parts.values())
    largest = sorted(parts.items(), key=lambda part: -part[1])[:most]
    shown = [f"{name} {gigabytes(size, unit='')}" for name, size in largest if size >= least]
    return f"{phase}: {', '.join(shown)}"


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


def remedy(plan: MemoryPlan, limit: int, savings: Sequence[Saving]) -> str:
    """What to change so that a plan fits `limit` bytes, or that nothing does."""
    left = plan.peak_bytes - sum(saving.size for saving in savings)
    named = ", ".join(f"{saving.words} saves {gigabytes(saving.size)}" for saving in savings)
    if left <= limit:
        return f"{named}; then {gigabytes(left)}"
    return f"no setting saves enough{f': with {named}, it is still {gigabytes(left)}' if named else ''}"
