"""W8A8: int8 matmuls instead of floating-point ones, for a frozen int8 weight.

Activations, and gradients in the backward pass, are quantized to int8 dynamically, with a scale per row. That costs
about 1 % of accuracy on ordinary rows, and more with outliers. The setting, the device and the sizes decide which
layers can use it (`is_supported`); calibration before training (`int8_calibration`) decides by the quantization error,
never by a timing. A matmul depends on no value: the host waits for nothing, and a compiler sees plain operations.

Shape suffixes: M rows (tokens), K the summed side, N the other side of the weight.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from toolkit.number_types import INT8_SIDE

Int8Matmul = Literal["auto"] | bool
"""`model.int8_matmul`."""

SMALLEST_SIDE_ON_CUDA = 1024
"""Smallest side of a weight for `auto` on CUDA, as `INT8_SIDE` on CPUs; not measured yet."""

MIN_CAPABILITY, HOPPER = (8, 0), 9
"""Lowest CUDA compute capability for `auto`, the first with int8 matmuls twice as fast as bf16 (not measured); and the
major one that is left out: on an H100 int8 matmuls reach 706 TFLOP/s where bf16 reaches 766, and compile for 127 s."""

MIN_ROWS = 17
"""With fewer rows the time is that of reading the weight; CUDA's kernel also needs as many."""

MAX_ERROR = 0.03
"""Largest relative quantization error, about that of E4M3 weights; 1 % is usual."""

LEVELS = 127
TINY = torch.finfo(torch.float32).tiny


class Int8Rows(NamedTuple):
    """A matrix as int8 codes and a scale per row."""

    codes_MK: Tensor
    scale_M1: Tensor


@cache
def is_supported(wanted: Int8Matmul, device: torch.device, shape: tuple[int, int], compiled: bool = False) -> bool:
    """Whether a layer of this shape [outputs, inputs] can use int8 matmuls on this device.

    compiled: whether inductor compiles the blocks; on CUDA quantizing the inputs is cheap only then.
    """
    divisible = all(side % 8 == 0 for side in shape)  # which CUDA's kernel needs
    if wanted != "auto":
        return wanted and is_exact(device) and (device.type == "cpu" or divisible)
    if device.type == "cpu":
        return _fast_cpu() and min(shape) >= INT8_SIDE
    if device.type != "cuda" or not compiled or min(shape) < SMALLEST_SIDE_ON_CUDA or not divisible:
        return False
    capability = torch.cuda.get_device_capability(device)
    return capability >= MIN_CAPABILITY and capability[0] != HOPPER and is_exact(device)


@cache
def exact_directions(device: torch.device) -> frozenset[str]:
    """The passes ("forward", "backward") in which the device has int8 matmuls without overflow: not every processor's
    kernels are free of it, and not every layout has a kernel."""
    extreme = torch.full((64, 64), -LEVELS, dtype=torch.int8)
    exact = set()
    # The codes of a weight are read by columns in the forward pass, by rows in the backward pass.
    for direction, second in {"forward": extreme.t(), "backward": extreme}.items():
        with suppress(RuntimeError, AssertionError):  # no such kernel; a build without CUDA asserts
            product = torch._int_mm(extreme[:32].to(device), as_supported(second.to(device)))
            if (product == LEVELS**2 * len(second)).all():
                exact.add(direction)
    return frozenset(exact)


def is_exact(device: torch.device) -> bool:
    """Whether the device has exact int8 matmuls in any direction."""
    return bool(exact_directions(device))


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
    """`x_MK` quantized to int8. A row with NaN or infinity gets such a scale, so its result is not finite."""
    x_MK = x_MK.float()
    size_MK = x_MK.abs()
    scale_M1 = (size_MK.amax(dim=-1, keepdim=True) / LEVELS).clamp_min_(TINY)
    return Int8Rows(torch.mul(x_MK, scale_M1.reciprocal(), out=size_MK).round_().to(torch.int8), scale_M1)


def as_supported(codes_KN: Tensor) -> Tensor:
    """The second factor in a layout that its device multiplies: by columns on CUDA. CPUs are spared the copy.

    Source: cuBLAS documentation, `cublasLtMatmul`: int8 in regular order has kernels for TN only, which is row-major
    times column-major here.
    """
    return codes_KN.t().contiguous().t() if codes_KN.is_cuda else codes_KN


def int8_mm(rows: Int8Rows, codes_KN: Tensor, dtype: torch.dtype) -> Tensor:
    """[M, N] in float32: the rows times an int8 matrix, accumulated in int32. dtype: the compute dtype around it."""
    sums_MN = torch._int_mm(rows.codes_MK.contiguous(), as_supported(codes_KN))
    if torch.compiler.is_compiling():  # one pass anyway; checkpointing keeps the sums, and in half the bytes
        return sums_MN.to(dtype) * rows.scale_M1
    return sums_MN.float().mul_(rows.scale_M1)
