"""Products of two int8 matrices in place of floating-point ones, for a frozen int8 weight.

The other factor (activations, or gradients on their way back) is rounded to int8 row by row, each row by its own
maximum, every time anew. That costs about 1 % of accuracy on ordinary rows, and more where a few values tower above
the rest; such a factor is recognised by the rounding error it would get, and is multiplied in floating point instead.
Everything is decided by the setting, the device, the sizes and the numbers themselves, never by a stopwatch, so a
run that goes on computes what the uninterrupted one would have.

Shape suffixes: M rows (tokens), K the summed side, N the other side of the weight.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Int8Matmul = Literal["auto"] | bool
"""`model.int8_matmul`."""

SMALLEST_SIDE = 512
"""`auto`: narrower layers lose more to rounding their inputs than the faster product gains (benchmarks/README.md)."""

FEWEST_ROWS = 17
"""Below, the weight's own traffic decides the time; CUDA's kernel also takes no fewer."""

MOST_ERROR = 0.03
"""Largest error that rounding a factor may cause, about what E4M3 weights have; 1 % is usual."""

LEVELS = 127
TINY = torch.finfo(torch.float32).tiny


class Int8Rows(NamedTuple):
    """A matrix as int8 codes and a factor per row."""

    codes_MK: Tensor
    scale_M1: Tensor


@cache
def applies(wanted: Int8Matmul, device: torch.device, shape: tuple[int, int]) -> bool:
    """Whether a layer of this shape [outputs, inputs] multiplies in int8 on this device."""
    if wanted == "auto":
        # On CUDA the passes around the kernel are not fused yet, and nothing shows that it is faster.
        return device.type == "cpu" and _fast_cpu() and min(shape) >= SMALLEST_SIDE
    return wanted and is_exact(device) and (device.type == "cpu" or all(side % 8 == 0 for side in shape))


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


def quantize_rows(x_MK: Tensor) -> Int8Rows | None:
    """`x_MK` (float32) rounded to int8, or None when that would lose more than `MOST_ERROR`, or on NaN and infinity.

    The error is foreseen: rounding adds noise of deviation 1 / sqrt(12) steps, which is compared with the mean
    magnitude of a row. (Its root mean square would count towering values as signal, and hide that they round all
    others to 0.)
    """
    size_MK = x_MK.abs()
    most_M1, mean_M1 = size_MK.amax(dim=-1, keepdim=True), size_MK.mean(dim=-1, keepdim=True)
    error_M1 = most_M1 / mean_M1.clamp_min_(TINY) / (math.sqrt(12) * LEVELS)
    if not bool(error_M1.sum() <= MOST_ERROR * most_M1.count_nonzero()):  # rows of zeros have no error and do not count
        return None
    scale_M1 = (most_M1 / LEVELS).clamp_min_(TINY)
    return Int8Rows(torch.mul(x_MK, scale_M1.reciprocal(), out=size_MK).round_().to(torch.int8), scale_M1)


def multiply(rows: Int8Rows, codes_KN: Tensor) -> Tensor:
    """[M, N] in float32: the rows times an int8 matrix, summed in int32."""
    return torch._int_mm(rows.codes_MK, codes_KN).float().mul_(rows.scale_M1)
