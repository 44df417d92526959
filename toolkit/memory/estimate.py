"""The estimated activation memory of a step at each checkpointing level, and the level
that `gradient_checkpointing: auto` chooses by it. Imports no torch.

`toolkit.plan.memory_phases` adds weights and optimizer state to it and estimates the
peak of a job phase by phase. Nothing here reads a device: `block_runner` passes the
free memory.

`toolkit.contracts.network_kinds.ActivationUnits` defines the unit of activations, and
has the numbers for each kind of network. GB are powers of 1000 here and in printed
lines. A GPU of N GB counts as N of them. Its real memory is 7 % larger; the desktop and
fragmentation use the difference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from toolkit.config.reading.field_types import OFFLOADING_LEVELS
from toolkit.contracts.network_kinds import KINDS, ActivationUnits, Pair
from toolkit.memory.flops import (
    KERNELS_PER_BLOCK,
    LAUNCH_S,
    RECOMPUTED,
    WEIGHTS_PER_TOKEN,
)

GAPS_SHARE, GAPS_AT_MOST, GAPS_OF_ALL = 0.08, 300_000_000, 0.04
"""Memory that PyTorch's CUDA allocator reserves beyond the tensors: a share of the
activations, its maximum in bytes, and the share where all activations are kept.
Measured on an H100, see docs/memory.md."""

OF_ATTENTION, OF_INPUT = 2.02, 1
"""Units kept per block: attention output, its log-sum-exp and block input, and the
block input alone."""

EXTRA_UNITS = {
    "offload_attention": 1 + 2 * (OF_ATTENTION - OF_INPUT),
    "full": 1,
    "full_offload": 3,
}
"""Extra units in the backward pass of a recomputed block, by checkpointing level: the
gradient of its output. `offload_attention` also has the results of attention of two
blocks on the device, which are being copied, and `full_offload` the input of the first
block and the prefetched input of the previous block."""

COMPILED_AGAIN = 4
"""Further units of a compiled block that is recomputed in half precision."""

BESIDE_A_LAYER = 2
"""Units in the backward pass while a full layer is in memory in the compute dtype."""

FORWARD_BESIDE_A_LAYER = 3
"""Units of the forward peak that are not allocated at that moment."""

SAVED_TWICE = 1.03
"""Bytes in main memory while a block is computed again with `block_offload`, per byte
that the block saves. A tensor that several operations save as different views is copied
once for each view."""

BESIDE_A_CHANGE = 7.5
"""Units of the peak of `block_offload` that are not allocated while an adapter makes
the change of a layer."""

DROPOUT_OFFLOADED = 4
"""Further units of that peak with input dropout of an adapter."""

OF_PRODUCTS = {"int8": 22.5, "fp8": 14.7}
"""Further bytes per token and channel where both factors of a product have 8 bits: the
quantized rows, and sums that are not scaled yet. Simulated on fake tensors."""

OF_DROPOUT = 12
"""Further units with input dropout of an adapter: each layer keeps its inputs and a
mask."""


@dataclass(frozen=True)
class StepShape:
    """The numbers that determine the activation memory of a step.

    >>> work = StepShape(tokens=4608, width=3072, blocks=60, number_bytes=2)
    >>> gigabytes(work.kept("full")), gigabytes(work.kept("none"))
    ('1.7 GB', '37.5 GB')
    """

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
    """Units of the model's blocks with this kind; None: the units in `KINDS`."""

    dropout: bool = False
    largest_layer: int = 0
    """Number of weights of the largest linear layer that processes every token."""

    largest_change: int = 0
    """Number of weights of the largest layer with an adapter, of modulation layers
    too."""

    dequantized_bytes: float = 0
    """Bytes per weight of a quantized layer's copies in the compute dtype, while it is
    used."""

    of_products: float = 0
    """Further bytes per token and channel while a layer is used: of `OF_PRODUCTS`."""

    casts: int = 0
    """Bytes of one block's trained parameters cast to the compute dtype; 0 where they
    have that dtype."""

    gradients: int = 0
    """Bytes of all parameter gradients that are in memory at a time."""

    gradients_wait: bool = False
    """Whether gradients of an earlier micro-batch are in memory from the beginning
    (accumulation)."""

    compiled: bool = False
    """Whether the blocks are compiled: they keep the tensors that the partitioner
    chooses."""

    kernels: int = KERNELS_PER_BLOCK[""]
    """A value of `KERNELS_PER_BLOCK`."""

    outside: int = 0
    """Bytes of activations that layers outside of the blocks keep."""

    def kept(self, level: str) -> int:
        """Bytes of activations that are kept on the device for the backward pass."""
        return self.outside + self.blocks * self._kept_by_block(level)

    def kept_on_host(self, level: str) -> int:
        """Bytes that wait in CPU memory: with `offload_attention` the results of
        attention of all blocks but the last; with `full_offload` the inputs of all but
        the first and last; with `block_offload` also the input of the last block, and
        all tensors that one block saves."""
        if level == "offload_attention":
            return int((self.blocks - 1) * (OF_ATTENTION - OF_INPUT) * self._unit)
        if level not in OFFLOADING_LEVELS:
            return 0
        if level == "full_offload":
            return int(max(0, self.blocks - 2) * OF_INPUT * self._unit)
        return int(
            (self.blocks - 1) * OF_INPUT * self._unit
            + SAVED_TWICE * self._kept_by_block("none")
        )

    def block_backward_bytes(self, level: str) -> int:
        """Bytes beyond `kept` in the backward pass of one block: the last one, which
        keeps all, or a recomputed one."""
        if level == "block_offload":
            return self._offloaded_peak()
        layer = self._of_layer(self._units.change) * self.largest_layer
        at_work = max(
            self._of(self._units.backward) * self._unit,
            layer and BESIDE_A_LAYER * self._unit + layer,
        )
        # A compiled block that is recomputed takes more memory than an eager one:
        # measured, see docs/memory.md.
        everything = replace(
            self, compiled=self.compiled and level == "none"
        )._kept_by_block("none")
        if self.compiled and level != "none" and self.number_bytes == 2:
            everything += COMPILED_AGAIN * self._unit
        extra = EXTRA_UNITS.get(level, 0) * self._unit
        # A modulation layer comes last in the backward pass, when the block's
        # activations are gone.
        alone = self._of(
            self._units.change
        ) * self.largest_change - self._kept_by_block(level)
        at_work += self._products
        beyond = everything - self._kept_by_block(level) + at_work
        return int(max(beyond, alone) + extra)

    def _offloaded_peak(self) -> int:
        """Bytes of all activations with `block_offload`: the inputs of the first block,
        and the operation at work."""
        assert self._units.offloaded  # the others are refused
        units = self._of(self._units.offloaded) + DROPOUT_OFFLOADED * self.dropout
        weight = self.number_bytes * self.largest_layer if self.dequantized_bytes else 0
        change = max(
            0,
            self._of(self._units.change) * self.largest_layer
            - BESIDE_A_CHANGE * self._unit,
        )
        return int(units * self._unit + weight + change + self._products)

    def forward(self) -> int:
        """Bytes of a forward pass without gradients."""
        most = self._of(self._units.forward) * self._unit
        layer = self._of_layer(self._units.change_forward) * self.largest_layer
        beside = layer and most - FORWARD_BESIDE_A_LAYER * self._unit + layer
        alone = self._of(self._units.change_forward) * self.largest_change
        return int(max(max(most, beside) + self._products, alone))

    @property
    def _units(self) -> ActivationUnits:
        return self.units or KINDS[self.kind].units

    def _of_layer(self, pair: Pair) -> float:
        """Bytes per weight of a layer: its change, and the copies of its dequantized
        weight."""
        change = self._of(pair)
        if self._units.change_has_weight:
            return max(change, self.dequantized_bytes)
        return change + self.dequantized_bytes

    @property
    def _products(self) -> float:
        return self.of_products * self.width * self.tokens

    @property
    def _unit(self) -> int:
        return self.tokens * self.width * self.number_bytes

    def _of(self, pair: Pair) -> float:
        return pair[self.number_bytes > 2]

    def _kept_by_block(self, level: str) -> int:
        of_block = self._units
        if level == "none":
            casts = self.casts if of_block.casts else 0
            everything = self._of(
                of_block.compiled if self.compiled else of_block.everything
            )
            return int((everything + OF_DROPOUT * self.dropout) * self._unit) + casts
        units = {
            "cheap": self._of(
                of_block.compiled_outputs if self.compiled else of_block.matmul_outputs
            ),
            "keep_attention": OF_ATTENTION,
            "offload_attention": OF_INPUT,
            "full": OF_INPUT,
            "full_offload": 0,
            "block_offload": 0,
        }
        return int(units[level] * self._unit)


def gaps_on_gpu(activations: float, level: str = "full") -> float:
    """Bytes that the allocator of a GPU holds in addition to these bytes of activations.

    >>> gaps_on_gpu(1e9)
    80000000.0
    """
    least = min(GAPS_SHARE * activations, GAPS_AT_MOST)
    return max(least, GAPS_OF_ALL * activations) if level == "none" else least


def step_peak(
    work: StepShape, level: str, gaps: Callable[[float], float] | None = None
) -> tuple[int, int]:
    """Bytes of (activations, parameter gradients) at the peak of a forward and backward
    pass.

    In the backward pass gradients grow while activations shrink, so the peak is at its
    first block, at its last one, or at its end; with accumulation at the first block.
    gaps: from bytes of activations to bytes of fragmentation. It decides where the peak
    is, but is not part of the result. None: `gaps_on_gpu`.
    """
    gaps = gaps or partial(gaps_on_gpu, level=level)
    saved_bytes = work.kept(level)
    block = work.block_backward_bytes(level)
    if work.gradients_wait:
        return saved_bytes + block, work.gradients
    share = 1 / work.blocks
    moments = [
        (saved_bytes + block, 0),
        (int(block + share * saved_bytes), int((1 - share) * work.gradients)),
        (0, work.gradients),
    ]
    return max(moments, key=lambda moment: moment[0] + gaps(moment[0]) + moment[1])


def activation_bytes(level: str, work: StepShape) -> int:
    """Bytes of free device memory needed for a forward and backward pass: activations,
    fragmentation, gradients."""
    activations, gradients = step_peak(work, level)
    return activations + int(gaps_on_gpu(activations, level)) + gradients


HOST_SHARE = {
    "none": 0.55,
    "cheap": 1.65,
    "keep_attention": 1.6,
    "full": 1.0,
    "full_offload": 1.1,
}
"""Level -> the host's time for an uncompiled block, as a share of the time at `full`:
selective checkpointing asks Python about every operation, twice. Measured as CPU time
of blocks with hardly any computation, torch 2.13; `full_offload` is an assumption."""


def step_seconds(level: str, work: StepShape, flops: float) -> float:
    """Seconds of a micro-step at a level where blocks are not compiled: the GPU's time
    or the host's, whichever is longer. flops: of the GPU per second. Attention is left
    out, so the GPU's time is too short for large images; there it is longer than the
    host's time anyway."""
    linear, _ = RECOMPUTED[level]
    of_gpu = 2 * WEIGHTS_PER_TOKEN * work.width**2 * work.tokens * (2 + linear) / flops
    return work.blocks * max(of_gpu, work.kernels * LAUNCH_S * HOST_SHARE[level])


def fastest_level_that_fits(
    levels: Iterable[str], free: int, work: StepShape, flops: float | None = None
) -> str:
    """The fastest of `levels` whose step fits into `free` bytes, or the last.

    levels: ordered from most to least memory, which is also their order of speed where
    the host's time does not matter. flops: of the GPU per second where it does matter
    (uncompiled blocks), else None.

    >>> work = StepShape(tokens=4608, width=3072, blocks=60, number_bytes=2)
    >>> fastest_level_that_fits(["none", "full"], free=20 * GB, work=work)
    'full'
    """
    levels = list(levels)
    fitting = [
        level for level in levels if activation_bytes(level, work) <= free
    ] or levels[-1:]
    if flops is None:
        return fitting[0]
    return min(fitting, key=lambda level: step_seconds(level, work, flops))


GB = 10**9


def gigabytes(size: float, unit: str = " GB") -> str:
    """Bytes in GB, with two decimals below 1.

    >>> gigabytes(40.86e9), gigabytes(500e6)
    ('40.9 GB', '0.50 GB')
    """
    value = size / GB
    return (f"{value:.1f}" if value >= 1 else f"{value:.2f}") + unit
