"""How much memory a step's activations take at each level of checkpointing, by arithmetic. Imports no torch.

One estimate for both who ask: the plan of a job, and `gradient_checkpointing: auto`. Its units, and what a block takes
with each kind of network: `toolkit.network_kinds.ActivationUnits`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from toolkit.network_kinds import KINDS, ActivationUnits, Pair

FRAGMENTATION = 1.08
"""Of activations on a device: what PyTorch's allocator holds beyond the tensors. An assumption."""

OF_ATTENTION, OF_INPUT = 2, 1
"""Units that a block keeps of what attention gives, with its input, and of its input alone."""

EXTRA_UNITS = {"full": 1, "full_offload": 3}
"""Extra units in the backward pass of a recomputed block, by checkpointing level: the gradient of
what it gave. `full_offload` has on the device besides what the first block was given, and what the one before the block
at work was given, on its way back."""

BESIDE_A_LAYER = 2
"""Units in the backward pass at the moment when a whole layer is in memory in the compute dtype."""

FORWARD_BESIDE_A_LAYER = 3
"""Units of a forward pass that are not there at that moment."""

OF_DROPOUT = 12
"""Further units where an adapter leaves out inputs: each layer keeps its own and a mask."""

OF_INT8_PRODUCTS = 24
"""Further bytes per token and unit of width where products are made in int8: the rounded inputs, the int32 results."""


@dataclass(frozen=True)
class StepShape:
    """What decides the memory of a step's activations."""

    tokens: int
    """Of all items of the largest batch: images, references and text."""

    width: int
    """Hidden size of the transformer: channels per token."""

    blocks: int
    number_bytes: int
    """2 in half precision, 4 in float32."""

    kind: str = "lora"
    """`network.type`."""

    dropout: bool = False
    largest_layer: int = 0
    """Weights of the largest linear layer that every token goes through."""

    dequantized_bytes: float = 0
    """Bytes per weight of a quantized layer's copies in the compute dtype, while it is used."""

    casts: int = 0
    """Bytes of one block's trained weights in the compute dtype, where that is not their own."""

    int8_products: bool = False
    gradients: int = 0
    """Bytes of all gradients of weights that are in memory together."""

    gradients_wait: bool = False
    """Whether those of an earlier micro-batch are there from the beginning."""

    def kept(self, level: str) -> int:
        """Bytes that all blocks keep on the device from the forward to the backward pass."""
        return self.blocks * self._kept_by_block(level)

    def kept_on_host(self, level: str) -> int:
        """Bytes of what `full_offload` keeps in the CPU memory: what each block but the first and last is given."""
        return int(max(0, self.blocks - 2) * OF_INPUT * self._unit) if level == "full_offload" else 0

    def block_backward_bytes(self, level: str) -> int:
        """Bytes on top, while a block goes backward: the last one, which keeps everything, or one that is computed
        again, where little is kept of it."""
        layer = (self.dequantized_bytes + self._of(self._units.change)) * self.largest_layer
        at_work = max(self._of(self._units.backward) * self._unit, layer and BESIDE_A_LAYER * self._unit + layer)
        beyond = self._kept_by_block("none") - self._kept_by_block(level)
        return int(beyond + EXTRA_UNITS.get(level, 0) * self._unit + at_work + self._products)

    def forward(self) -> int:
        """Bytes of a pass that keeps nothing."""
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
    """Bytes of (activations, gradients of weights) at the worst moment of a forward and backward pass.

    Gradients come as activations go, unless some wait already: the worst moment is the first block of the backward
    pass, its last one, or the end. gaps: factor on activations for what the allocator holds between them; it decides
    which moment is the worst, and is not in what is returned.
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
    """Bytes that have to be free on a device for a forward and backward pass: activations, gaps, gradients."""
    activations, gradients = step_peak(work, level)
    return int(FRAGMENTATION * activations) + gradients


def fastest_level_that_fits(levels: Iterable[str], free: int, work: StepShape) -> str:
    """The first of `levels` (from the fastest to the smallest) whose step fits into `free` bytes, or the last."""
    levels = list(levels)
    return next((level for level in levels if activation_bytes(level, work) <= free), levels[-1])
