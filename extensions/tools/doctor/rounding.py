"""Computes how much of a change is left when it is merged into quantized weights.

The change d is added to the weights Q of a file or device, and the sum is rounded to
their type again, to the nearest. The weights are then R(Q + d), and the actual change
is e = R(Q + d) - Q. Where d is smaller than half a step of the type, e is zero. The
loss is the share of d that is not in e, 1 - <e, d> / <d, d>; the rest of e is noise.

Nothing is written or merged. `process` calls `rounding` where the weights are on this
disk, and `predicted` where they are not.

Shape suffixes: I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from toolkit.memory.quantization import E4M3_MAX, quantize_weight
from toolkit.networks.lora_formats import LayerDelta

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The sizes of a number of nvfp4."""

NVFP4_BLOCK = 16
ROWS = 256
"""Most rows of a layer that a prediction takes."""


class Rounding(NamedTuple):
    """Sums over elements, float64, so that the sums of layers can be added.

    >>> one = Rounding(inner=1.0, changed=1.0, meant=4.0)
    >>> one.lost, (one + one).lost
    (0.75, 0.75)
    """

    inner: float
    """<e, d>"""

    changed: float
    """<e, e>"""

    meant: float
    """<d, d>"""

    @property
    def lost(self) -> float:
        """Share of the change that is rounded away; below 0 where rounding makes it
        larger."""
        return 1 - self.inner / self.meant if self.meant else 0.0

    @property
    def noise(self) -> float:
        """Norm of the noise, divided by the norm of the change."""
        if not self.meant:
            return 0.0
        rest = max(self.changed - self.inner**2 / self.meant, 0.0)
        return math.sqrt(rest / self.meant)

    def __add__(self, other: Rounding) -> Rounding:  # type: ignore[override]
        return Rounding(*map(sum, zip(self, other, strict=True)))


def rounding(
    weight_OI: Tensor, change_of: Callable[[Tensor], Tensor], base: str
) -> Rounding:
    """The rest of the change of a layer. weight_OI: float32, not yet quantized. base: a
    key of ROUNDED. change_of: gives the change for the quantized weight, because the
    change of a DoRA depends on the norms of that."""
    before = ROUNDED[base](weight_OI)
    change_OI = change_of(before)
    left = (ROUNDED[base](before + change_OI) - before).double()
    change = change_OI.double()
    return Rounding(
        float((left * change).sum()),
        float((left * left).sum()),
        float((change * change).sum()),
    )


def predicted(change: LayerDelta, base: str, seed: int) -> list[Rounding]:
    """`rounding` where the weights are not on this disk. Some rows, evenly spread, are
    computed on normal weights of the size with which a layer's outputs are as large as
    its inputs, 1 / sqrt(I), and on weights half and twice as large. The norms of a DoRA
    are left out, because they depend on the weights. Of an OFT, BOFT or GLoRA all rows
    are taken."""
    outputs, inputs = change.shape
    random = torch.Generator().manual_seed(seed)
    sizes = (1.0, 0.5, 2.0)
    if change.multiplied:
        whole = torch.randn((outputs, inputs), generator=random) / math.sqrt(inputs)
        return [rounding(whole * size, change.delta_for, base) for size in sizes]
    rows = torch.linspace(0, outputs - 1, min(ROWS, outputs)).round().long()
    if change.low_rank is None:
        change_OI = change.delta()[rows]
    else:
        change_OI = change.low_rank[0][rows] @ change.low_rank[1]
    weight = torch.randn((len(rows), inputs), generator=random) / math.sqrt(inputs)
    return [rounding(weight * size, lambda _: change_OI, base) for size in sizes]


def _e4m3(values: Tensor, scale: Tensor | float) -> Tensor:
    clamped = (values / scale).clamp(-E4M3_MAX, E4M3_MAX)
    return clamped.to(torch.float8_e4m3fn).float() * scale


def _by_toolkit(qtype: str) -> Callable[[Tensor], Tensor]:
    return lambda weight_OI: quantize_weight(weight_OI, qtype).dequantize().float()


def nvfp4(weight_OI: Tensor) -> Tensor:
    """Rounds a weight to nvfp4: E2M1 numbers, an E4M3 scale for each 16 along a row, a
    float32 scale for the tensor. Rows whose length 16 does not divide are one block.

    Source: NVIDIA, "Introducing NVFP4 for Efficient and Accurate Low-Precision
    Inference" (developer.nvidia.com, 2025): the scale of the tensor is its largest
    value through 6 * 448.
    """
    inputs = weight_OI.shape[1]
    blocks = weight_OI.reshape(-1, NVFP4_BLOCK if inputs % NVFP4_BLOCK == 0 else inputs)
    whole = (weight_OI.abs().amax() / (E2M1[-1] * E4M3_MAX)).clamp_min(
        torch.finfo(torch.float32).tiny
    )
    scale = _e4m3(blocks.abs().amax(1, keepdim=True) / E2M1[-1] / whole, 1.0) * whole
    sizes = torch.tensor(E2M1)
    steps = (blocks / scale).nan_to_num(0.0, 0.0, 0.0)
    middle = (sizes[1:] + sizes[:-1]) / 2
    # Halves go to the even code, as hardware rounds: the code below has to be even for
    # `right` to stay there.
    below = torch.bucketize(steps.abs(), middle)
    above = torch.bucketize(steps.abs(), middle, right=True)
    codes = torch.where((below != above) & (below % 2 == 1), above, below)
    return (sizes[codes] * steps.sign() * scale).view(weight_OI.shape)


ROUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "fp8": lambda weight_OI: _e4m3(
        weight_OI, (weight_OI.abs().amax() / E4M3_MAX).clamp_min(1e-12)
    ),
    "fp8_rows": _by_toolkit("float8"),
    "fp8_unscaled": lambda weight_OI: _e4m3(weight_OI, 1.0),
    "int8": _by_toolkit("int8"),
    "int4": _by_toolkit("int4"),
    "nvfp4": nvfp4,
}
"""`base_dtype` -> the function that rounds a weight [O, I] to it."""
