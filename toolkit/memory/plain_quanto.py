"""optimum-quanto without its compiled kernels.

By default it builds C++ and CUDA extensions when int4 or float8 weights are first used, and so fails on a machine
without g++ or nvcc; its bfloat16 int4 layout ("tinygemm") repacks the weights at every backward step and loses
precision. Training needs none of it: the plain tensors dequantize with torch's own operations, everywhere alike.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch


@cache
def use_plain_tensors() -> torch.library.Library:
    """From now on quantized weights are optimum-quanto's plain tensors, unpacked by torch operations.

    The result keeps the override alive; it is cached, so calling this again does nothing.
    """
    from optimum.quanto.tensor.weights import qbits, qbytes

    qbits.WeightQBitsTensor.create = staticmethod(_plain_qbits)
    qbytes.WeightQBytesTensor.create = staticmethod(_plain_qbytes)
    library = torch.library.Library("quanto", "IMPL")
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # "overriding a kernel": that is the point
        for device in ("CPU", "CUDA"):
            library.impl("unpack", _unpack, device, allow_override=True)
    return library


def _unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The uint8 values of `bits` bits each in a packed uint8 tensor: all lowest ones first, along the first axis."""
    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])


def _plain_qbits(qtype, axis, group_size, size, stride, data, scale, shift, requires_grad=False):
    from optimum.quanto.tensor.weights.qbits import WeightQBitsTensor

    return WeightQBitsTensor(qtype, axis, group_size, size, stride, data, scale, shift, requires_grad)


def _plain_qbytes(qtype, axis, size, stride, data, scale, activation_qtype=None, requires_grad=False):
    from optimum.quanto.tensor.weights.qbytes import WeightQBytesTensor

    return WeightQBytesTensor(qtype, axis, size, stride, data, scale, activation_qtype, requires_grad)
