"""Matrix products of which both factors have 8 bits (`model.quantized_products`).

The rows of the activations, and of the gradients in the backward pass, are quantized
with a scale each. The weights have their codes already (`quantization`), which also
decides where such a product is used: a layer of other sizes, and a few rows, are
multiplied in the type of the computation. No product looks at its numbers, so the host
waits for nothing, and a compiler sees plain operations.

Error and speed: docs/measured.md. Shape suffixes: M rows (tokens), K the summed side, N
the other side of the weight, O outputs and I inputs of a layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.number_types import QuantizedProducts

LEAST_ROWS = 17
"""CUDA's int8 kernel takes no fewer rows. With as few, the time is that of reading the
weight, whatever it is multiplied with. Source: PyTorch 2.13, aten/src/ATen/native/cuda/
Blas.cpp, `_int_mm_out_cuda`."""

MULTIPLE = 16
"""Both sides of a weight are multiples of it, which `_scaled_mm` requires; `_int_mm`
those of 8."""

ROTATED = 64
"""Inputs that are rotated together for int8. An outlier is spread over its group, so
that it does not round the other numbers of its row to zero. E4M3 has an exponent for
each number, and gains nothing by it. Larger groups lower the error by a fifth, and cost
four times the operations."""

TINY = torch.finfo(torch.float32).tiny


class _Kind(NamedTuple):
    dtype: torch.dtype
    largest: float
    capability: tuple[int, int]
    """The first CUDA compute capability with a kernel for such products."""


_KINDS: dict[str, _Kind] = {
    "int8": _Kind(torch.int8, 127, (7, 5)),
    "fp8": _Kind(torch.float8_e4m3fn, 448, (8, 9)),
}


def check_products(kind: QuantizedProducts, device: torch.device) -> None:
    """Raises UserError where the device has no such products, or inexact ones: some
    processors' int8 kernels overflow."""
    _, largest, least = _KINDS[kind]
    remedy = "Write false"
    if device.type == "cuda":
        has = torch.cuda.get_device_capability(device)
        if has < least:
            if has >= _KINDS["int8"].capability:
                remedy += ", or int8 with 'qtype: int8'"
            raise UserError(
                f"model.quantized_products: {kind} takes a GPU of compute capability {_dotted(least)} or higher, "
                f"and {torch.cuda.get_device_name(device)} has {_dotted(has)}. {remedy}."
            )
    codes_MK = _codes(torch.full((32, 64), largest, device=device), kind)
    try:
        sums_MN = _sums(codes_MK, codes_MK.t())
        reason = "" if bool((sums_MN == largest**2 * 64).all()) else "its sums overflow"
    except (RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
    if reason:
        raise UserError(
            f"model.quantized_products: {device} has no exact {kind} products ({reason}). {remedy}."
        )


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def multiply(x_MK: Tensor, codes_KN: Tensor) -> Tensor:
    """[M, N] in float32: x, quantized by rows, times the codes, whose scales are not
    applied. A row with NaN or infinity gives NaN, so that the loop skips such a
    step.

    >>> x, codes = torch.ones(17, 16), torch.full((16, 16), 2, dtype=torch.int8)
    >>> multiply(x, codes)[0, 0]
    tensor(32.)
    """
    kind = "int8" if codes_KN.dtype == torch.int8 else "fp8"
    largest_M1 = x_MK.abs().amax(-1, keepdim=True).float()
    scale_M1 = (largest_M1 / _KINDS[kind].largest).clamp_min_(TINY)
    codes_MK = _codes(x_MK / scale_M1, kind)  # divided in float32
    return _sums(codes_MK, codes_KN).float().mul_(scale_M1)


def _codes(values: Tensor, kind: str) -> Tensor:
    return (values.round_() if kind == "int8" else values).to(_KINDS[kind].dtype)


def _sums(codes_MK: Tensor, codes_KN: Tensor) -> Tensor:
    """Products of int8 in int32, of E4M3 in bfloat16. cuBLASLt multiplies 8 bits row by
    column alone: a second factor with rows is copied to columns."""
    codes_KN = codes_KN.t().contiguous().t()
    if codes_MK.dtype == torch.int8:
        return torch._int_mm(codes_MK, codes_KN)
    one = torch.ones((), device=codes_MK.device)
    return torch._scaled_mm(codes_MK, codes_KN, one, one, out_dtype=torch.bfloat16)


def product_grad(g_MO: Tensor, codes_OI: Tensor, scale_O1: Tensor) -> Tensor:
    """The gradient [M, I] of the inputs, in the type of `g_MO`. The scale of an output
    row of the weight is that of a column of g, so it is applied before g is
    quantized."""
    return multiply(g_MO * scale_O1.t().float(), codes_OI).to(g_MO.dtype)


_library = torch.library.Library("atelier", "FRAGMENT")
_library.define(
    "with_gradient(Tensor x_MI, Tensor y_MO, Tensor codes_OI, Tensor scale_O1) -> Tensor"
)
_library.impl(
    "with_gradient",
    lambda x_MI, y_MO, codes_OI, scale_O1: y_MO.clone(),
    "CompositeExplicitAutograd",
)

with_gradient = torch.ops.atelier.with_gradient.default
"""y, with `product_grad` as the gradient of x: products of 8 bits have no derivative.
For compiled blocks, where an autograd.Function is not cached."""


def _keep_weight(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[2:])


def _gradient(ctx: Any, g_MO: Tensor) -> tuple[Tensor, None, None, None]:
    return product_grad(g_MO, *ctx.saved_tensors), None, None, None


torch.library.register_autograd(
    "atelier::with_gradient", _gradient, setup_context=_keep_weight, lib=_library
)
