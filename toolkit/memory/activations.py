"""How much memory a step's activations take at each level of checkpointing, by arithmetic. Imports no torch.

One estimate for both who ask: the plan of a job, and `gradient_checkpointing: auto`. Its units, and what a block takes
with each kind of network: `toolkit.network_kinds.ActivationUnits`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from toolkit.network_kinds import KINDS, ActivationUnits, Pair

GAPS = 1.08
"""Of activations on a device: what PyTorch's allocator holds beyond the tensors. An assumption."""

OF_ATTENTION, OF_INPUT = 2, 1
"""Units that a block keeps of what attention gives, with its input, and of its input alone."""

FURTHER = {"full": 1, "full_offload": 3}
"""Units on the way back by level, where a block that is computed again takes more than the last one: the gradient of
what it gave. `full_offload` has on the device besides what the first block was given, and what the one before the block
at work was given, on its way back."""

BESIDE_A_LAYER = 2
"""Units on the way back at the moment when a whole layer is in memory in the type of the computation."""

FORWARD_BESIDE_A_LAYER = 3
"""Units of a forward pass that are not there at that moment."""

OF_DROPOUT = 12
"""Further units where an adapter leaves out inputs: each layer keeps its own and a mask."""

OF_INT8_PRODUCTS = 24
"""Further bytes per token and unit of width where products are made in int8: the rounded inputs, the int32 results."""


@dataclass(frozen=True)
class Work:
    """What decides the memory of a step's activations."""

    tokens: int
    """Of all items of the largest batch: pictures, references and text."""

    width: int
    """Numbers of a token between blocks."""

    blocks: int
    number_bytes: int
    """2 in half precision, 4 in float32."""

    kind: str = "lora"
    """`network.type`."""

    dropout: bool = False
    largest_layer: int = 0
    """Weights of the largest linear layer that every token goes through."""

    expanded: float = 0
    """Bytes per weight of a quantized layer's copies in the type of the computation, while it is used."""

    casts: int = 0
    """Bytes of one block's trained weights in the type of the computation, where that is not their own."""

    int8_products: bool = False
    gradients: int = 0
    """Bytes of all gradients of weights that are in memory together."""

    gradients_wait: bool = False
    """Whether those of an earlier micro-batch are there from the beginning."""

    def kept(self, level: str) -> int:
        """Bytes that all blocks keep on the device from the forward to the backward pass."""
        return self.blocks * self._kept_by_block(level)

    def kept_on_host(self, level: str) -> int:
        """Bytes of what `full_offload` keeps in the main memory: what each block but the first and last is given."""
        return int(max(0, self.blocks - 2) * OF_INPUT * self._unit) if level == "full_offload" else 0

    def of_one_block(self, level: str) -> int:
        """Bytes on top, while a block goes backward: the last one, which keeps everything, or one that is computed
        again, where little is kept of it."""
        layer = (self.expanded + self._of(self._units.change)) * self.largest_layer
        at_work = max(self._of(self._units.backward) * self._unit, layer and BESIDE_A_LAYER * self._unit + layer)
        beyond = self._kept_by_block("none") - self._kept_by_block(level)
        return int(beyond + FURTHER.get(level, 0) * self._unit + at_work + self._products)

    def forward(self) -> int:
        """Bytes of a pass that keeps nothing."""
        most = self._of(self._units.forward) * self._unit
        layer = (self.expanded + self._of(self._units.change_forward)) * self.largest_layer
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
            "cheap": self._of(self._units.costly),
            "keep_attention": OF_ATTENTION,
            "full": OF_INPUT,
            "full_offload": 0,
        }
        return int(units[level] * self._unit)


def step_peak(work: Work, level: str, gaps: float = GAPS) -> tuple[int, int]:
    """Bytes of (activations, gradients of weights) at the worst moment of a forward and backward pass.

    Gradients come as activations go, unless some wait already: the worst moment is the first block of the backward
    pass, its last one, or the end. gaps: factor on activations for what the allocator holds between them; it decides
    which moment is the worst, and is not in what is returned.
    """
    kept, block = work.kept(level), work.of_one_block(level)
    if work.gradients_wait:
        return kept + block, work.gradients
    share = 1 / work.blocks
    moments = [
        (kept + block, 0),
        (int(block + share * kept), int((1 - share) * work.gradients)),
        (0, work.gradients),
    ]
    return max(moments, key=lambda moment: gaps * moment[0] + moment[1])


def activation_bytes(level: str, work: Work) -> int:
    """Bytes that have to be free on a device for a forward and backward pass: activations, gaps, gradients."""
    activations, gradients = step_peak(work, level)
    return int(GAPS * activations) + gradients


def roomiest(levels: Iterable[str], free: int, work: Work) -> str:
    """The first of `levels` (from the fastest to the smallest) whose step fits into `free` bytes, or the last."""
    levels = list(levels)
    return next((level for level in levels if activation_bytes(level, work) <= free), levels[-1])
