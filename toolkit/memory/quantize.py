"""Quantizes the linear layers of a block: optimum-quanto computes the codes, `quantized_weight` stores and uses them.

Shape suffixes: I inputs of a layer, O outputs, N blocks along a row.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import torch
from torch import Tensor, nn

from toolkit.host_memory import malloc_trim
from toolkit.memory.quantized_linear import QuantizedLinear
from toolkit.memory.quantized_weight import (
    BlockwiseQuantized,
    GroupwiseQuantized,
    QuantizedWeight,
    RowwiseQuantized,
    WithRecoveryLora,
)

QUANTO = {"int8": "qint8", "int4": "qint4", "int2": "qint2", "float8": "qfloat8"}
"""`model.qtype` -> optimum-quanto's name."""

LowRank = tuple[Tensor, Tensor]
"""(up [O, R], down [R, I]) of a low-rank delta."""

DEFAULT_RECOVERY_QTYPE = "int8"
"""Quantization of layers without a recovery adapter where others have one, as in ai-toolkit."""

E4M3_MAX = 448.0
BLOCK = 64
"""Weights along a row that share a scale in fp8_scaled."""


def quantizer(qtype: str, recovery: MutableMapping[str, LowRank] | None = None) -> Callable[[nn.Module, str], None]:
    """A function that quantizes a block to `qtype` in place, called with each block and its dotted name.

    recovery: full layer name -> frozen low-rank delta of an accuracy-recovery adapter; layers without one become int8.
    Entries are removed once used, so that none is in memory twice.
    """

    def transform(block: nn.Module, name: str) -> None:
        for layer in [layer for layer, module in block.named_modules() if isinstance(module, nn.Linear)]:
            linear = block.get_submodule(layer)
            assert isinstance(linear, nn.Linear)  # as those listed
            own = recovery.pop(f"{name}.{layer}", None) if recovery is not None else None
            chosen = qtype if recovery is None or own else DEFAULT_RECOVERY_QTYPE
            weight = quantize_weight(linear.weight.detach(), chosen)
            if own:
                weight = WithRecoveryLora(weight, *own)
            block.set_submodule(layer, QuantizedLinear(weight, linear.bias))
            del linear
            malloc_trim()  # of one layer at a time: the float temporaries of a block would add up
        block.requires_grad_(False)

    return transform


@torch.no_grad()
def quantize_weight(weight_OI: Tensor, qtype: str) -> QuantizedWeight:
    """`weight_OI` in `qtype`: per output row for int8 and float8, else in groups along the input side."""
    if qtype == "fp8_scaled":
        return block_scaled(weight_OI)
    return _by_quanto(weight_OI, QUANTO[qtype])


def _by_quanto(weight_OI: Tensor, name: str) -> QuantizedWeight:
    """The codes of optimum-quanto, without its tensor classes, which need compiled kernels."""
    from optimum.quanto import QLinear, qtypes
    from optimum.quanto.tensor.weights.quantization import quantize_weight as by_quanto

    qtype = qtypes[name]
    outputs, inputs = weight_OI.shape
    choices = QLinear(inputs, outputs, bias=False, weights=qtype, device="meta")  # its groups and how it scales
    if qtype.bits == 8:
        scale_O1 = choices.optimizer(weight_OI, qtype=qtype, axis=0)
        quantized = by_quanto(weight_OI, qtype=qtype, axis=0, scale=scale_O1, optimized=False)
        return RowwiseQuantized(_zero_for_nan(quantized._data), quantized._scale)
    group = choices.weight_group_size
    scale, shift = choices.optimizer(weight_OI, qtype=qtype, axis=0, group_size=group)
    quantized = by_quanto(weight_OI, qtype, 0, scale, shift, group_size=group, optimized=False)
    return GroupwiseQuantized(quantized._data._data, qtype.bits, quantized._scale, quantized._shift, (outputs, inputs))


def _zero_for_nan(codes: Tensor) -> Tensor:
    """Repairs float8 rows that were all zero: quanto scales a row by its maximum, and 0 / 0 is NaN."""
    return codes.float().nan_to_num_(0.0).to(codes.dtype) if codes.is_floating_point() else codes


def block_scaled(weight_OI: Tensor, block: int = BLOCK) -> BlockwiseQuantized:
    """E4M3 scaled to the maximum of each block; rows whose length `block` does not divide are one block.

    Source: musubi-tuner, modules/fp8_optimization_utils.py, `quantize_weight`; its scales are kept in float32 here.
    """
    outputs, inputs = weight_OI.shape
    blocks = inputs // block if inputs % block == 0 else 1
    values = weight_OI.float().view(outputs, blocks, -1)
    scale = (values.abs().amax(dim=-1, keepdim=True) / E4M3_MAX).clamp_min_(1e-8)
    codes = (values / scale).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return BlockwiseQuantized(codes.view(outputs, inputs), scale[..., 0], weight_OI.dtype)
