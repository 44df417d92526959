"""Estimates the activation memory of a step at each checkpointing level. Imports no torch.

Used by the plan of a job and by `gradient_checkpointing: auto`. `toolkit.network_kinds.ActivationUnits` defines the
unit, and has the numbers for each kind of network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from toolkit.network_kinds import KINDS, ActivationUnits, Pair

FRAGMENTATION = 1.08
"""Factor on activations on a GPU: memory that PyTorch's allocator reserves beyond the tensors. An assumption."""

OF_ATTENTION, OF_INPUT = 2, 1
"""Units kept per block: attention output and block input, and the block input alone."""

EXTRA_UNITS = {"full": 1, "full_offload": 3}
"""Extra units in the backward pass of a recomputed block, by checkpointing level: the gradient of its output.
`full_offload` also has the input of the first block and the prefetched input of the previous block on the device."""

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
        beyond = self._kept_by_block("none") - self._kept_by_block(level)
        return int(beyond + EXTRA_UNITS.get(level, 0) * self._unit + at_work + self._products)

    def forward(self) -> int:
        """Bytes of a forward pass without gradients."""
        most = self._of(self._units.forward) * self._unit
        layer = (self.dequantized_bytes + self._of(self._units.change_forward)) * self.largest_layer
        return int(max(most, layer and most - FORWARD_BESIDE_A_LAYER * self._unit + layer) + self._products)

    @property
    def _units(self) -> ActivationUnits:
        return KINDS[self.kind].units

    @property
    def _unit(self) -> int:
        return self.tokens * self.width * self.number_bytes

    @property
    def _products(self) -> int:
        return OF_INT8_PRODUCTS * self.width * self.tokens if self.int8_products else 0

    def _of(self, pair: Pair) -> float:
        return pair[self.number_bytes > 2]

    def _kept_by_block(self, level: str) -> int:
        if level == "none":
            casts = self.casts if self._units.casts else 0
            return int((self._of(self._units.everything) + OF_DROPOUT * self.dropout) * self._unit) + casts
        units = {
            "cheap": self._of(self._units.matmul_outputs),
            "keep_attention": OF_ATTENTION,
            "full": OF_INPUT,
            "full_offload": 0,
        }
        return int(units[level] * self._unit)


def step_peak(work: StepShape, level: str, gaps: float = FRAGMENTATION) -> tuple[int, int]:
    """Bytes of (activations, parameter gradients) at the peak of a forward and backward pass.

    In the backward pass gradients grow while activations shrink, so the peak is at its first block, at its last one, or
    at its end; with accumulation at the first block. gaps: fragmentation factor on activations, which decides where the
    peak is; the result is without it.
    """
    kept, block = work.kept(level), work.block_backward_bytes(level)
    if work.gradients_wait:
        return kept + block, work.gradients
    share = 1 / work.blocks
    moments = [
        (kept + block, 0),
        (int(block + share * kept), int((1 - share) * work.gradients)),
        (0, work.gradients),
    ]
    return max(moments, key=lambda moment: gaps * moment[0] + moment[1])


def activation_bytes(level: str, work: StepShape) -> int:
    """Bytes of free device memory needed for a forward and backward pass: activations, fragmentation, gradients."""
    activations, gradients = step_peak(work, level)
    return int(FRAGMENTATION * activations) + gradients


def fastest_level_that_fits(levels: Iterable[str], free: int, work: StepShape) -> str:
    """The first of `levels` (from the fastest to the smallest) whose step fits into `free` bytes, or the last."""
    levels = list(levels)
    return next((level for level in levels if activation_bytes(level, work) <= free), levels[-1])
