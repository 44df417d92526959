"""Products of two int8 matrices in place of floating-point ones, for a frozen int8 weight.

The other factor (activations, or gradients on their way back) is rounded to int8 row by row, each row by its own
maximum, every time anew. That costs about 1 % of accuracy on ordinary rows, and more where a few values tower above
the rest. Which layers are multiplied so is decided by the setting, the device and the sizes (`is_supported`), and by
the error that a factor would get (`quantization_error`), once, before training (`int8_probe`); never by a stopwatch. A
product itself looks at no number: the host waits for nothing, and a compiler sees plain operations.

Shape suffixes: M rows (tokens), K the summed side, N the other side of the weight.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from toolkit.number_types import INT8_SIDE

Int8Matmul = Literal["auto"] | bool
"""`model.int8_matmul`."""

SMALLEST_SIDE_ON_CUDA = 1024
"""`auto` there, as `INT8_SIDE` on CPUs; not measured yet."""

LEAST_CAPABILITY = (8, 0)
"""Of CUDA devices that `auto` takes: the first whose int8 products are twice as fast as those in bf16."""

MIN_ROWS = 17
"""Below, the weight's own traffic decides the time; CUDA's kernel also takes no fewer."""

MAX_ERROR = 0.03
"""Largest error that rounding a factor may cause, about what E4M3 weights have; 1 % is usual."""

LEVELS = 127
TINY = torch.finfo(torch.float32).tiny


class Int8Rows(NamedTuple):
    """A matrix as int8 codes and a factor per row."""

    codes_MK: Tensor
    scale_M1: Tensor


@cache
def is_supported(wanted: Int8Matmul, device: torch.device, shape: tuple[int, int], compiled: bool = False) -> bool:
    """Whether a layer of this shape [outputs, inputs] may multiply in int8 on this device.

    compiled: whether inductor compiles the blocks; on CUDA only then are the passes around the product cheap.
    """
    if wanted == "auto":
        return _pays(device, shape, compiled)
    return wanted and is_exact(device) and (device.type == "cpu" or _divisible(shape))


def _pays(device: torch.device, shape: tuple[int, int], compiled: bool) -> bool:
    if device.type == "cpu":
        return _fast_cpu() and min(shape) >= INT8_SIDE
    if device.type != "cuda" or not compiled or min(shape) < SMALLEST_SIDE_ON_CUDA or not _divisible(shape):
        return False
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY and is_exact(device)


def _divisible(shape: tuple[int, int]) -> bool:
    """CUDA's kernel takes no other sizes."""
    return all(side % 8 == 0 for side in shape)


@cache
def is_exact(device: torch.device) -> bool:
    """Whether the device multiplies int8 matrices, and without overflow: not every processor's kernels do."""
    try:
        extreme = torch.full((64, 64), -LEVELS, dtype=torch.int8, device=device)
        # As in the forward pass, by columns, and as in the backward pass, by rows.
        products = [torch._int_mm(extreme[:32], second) for second in (extreme.t(), extreme)]
        return all(bool((product == LEVELS**2 * 64).all()) for product in products)
    except (RuntimeError, AssertionError):  # no such kernel; a build without CUDA asserts
        return False


@cache
def _fast_cpu() -> bool:
    return bool(torch.cpu.get_capabilities().get("avx512_vnni")) and is_exact(torch.device("cpu"))


def quantization_error(x_MK: Tensor) -> Tensor:
    """The relative error that `quantize_rows` would cause, 0-dim; NaN where a number is not finite.

    Rounding adds noise of deviation 1 / sqrt(12) steps, which is compared with the mean magnitude of a row. (Its root
    mean square would count towering values as signal, and hide that they round all others to 0.) The mean over all
    rows but those of zeros, which have no error.
    """
    size_MK = x_MK.float().abs()
    most_M1, mean_M1 = size_MK.amax(dim=-1, keepdim=True), size_MK.mean(dim=-1, keepdim=True)
    error_M1 = most_M1 / mean_M1.clamp_min_(TINY) / (math.sqrt(12) * LEVELS)
    return error_M1.sum() / most_M1.count_nonzero().clamp_min_(1)


def quantize_rows(x_MK: Tensor) -> Int8Rows:
    """`x_MK` rounded to int8. A row with NaN or infinity has such a scale: its product is nowhere finite."""
    x_MK = x_MK.float()
    size_MK = x_MK.abs()
    scale_M1 = (size_MK.amax(dim=-1, keepdim=True) / LEVELS).clamp_min_(TINY)
    return Int8Rows(torch.mul(x_MK, scale_M1.reciprocal(), out=size_MK).round_().to(torch.int8), scale_M1)


def int8_mm(rows: Int8Rows, codes_KN: Tensor, dtype: torch.dtype) -> Tensor:
    """[M, N] in float32: the rows times an int8 matrix, summed in int32. dtype: of the computation around it."""
    sums_MN = torch._int_mm(rows.codes_MK, codes_KN)
    if torch.compiler.is_compiling():  # one pass anyway; checkpointing keeps the sums, and in half the bytes
        return sums_MN.to(dtype) * rows.scale_M1
    return sums_MN.float().mul_(rows.scale_M1)
