"""Weight-only quantization of a block's linear layers, by optimum-quanto."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from toolkit.host_memory import return_freed_memory
from toolkit.memory.plain_quanto import use_plain_tensors

QTYPES = {"int8": "qint8", "int4": "qint4", "float8": "qfloat8"}
"""`model.qtype` -> optimum-quanto's name."""


def quantizer(qtype: str) -> Callable[[nn.Module, str], None]:
    """What quantizes one block after another to `qtype`, in place; it is given each block and its dotted name."""

    def transform(block: nn.Module, name: str) -> None:
        quantize_block(block, qtype)

    return transform


def quantize_block(block: nn.Module, qtype: str) -> None:
    """Replaces the weights of every linear layer of `block` by quantized ones, in place, and freezes them.

    qtype: a key of QTYPES. Biases and norms keep their dtype. Quantization is per output row for int8 and
    float8, in groups along the input for int4 (optimum-quanto's defaults).
    """
    from optimum.quanto import QModuleMixin, qtypes, quantize

    use_plain_tensors()

    quantize(block, weights=qtypes[QTYPES[qtype]])
    for module in block.modules():
        if isinstance(module, QModuleMixin):
            module.freeze()
            _zero_for_nan(module.weight)
            return_freed_memory()  # of one layer at a time: the float temporaries of a block would add up
    # freeze() leaves the quantized weights trainable: backward would compute gradients for all of them.
    block.requires_grad_(False)


def _zero_for_nan(weight: Tensor) -> None:
    """Repairs float8 rows that were all zero: quanto scales a row by its maximum, and 0 / 0 is NaN."""
    data = getattr(weight, "_data", None)
    if data is not None and data.is_floating_point():
        data.copy_(data.float().nan_to_num_(0.0))
