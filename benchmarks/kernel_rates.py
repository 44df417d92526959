"""How fast the device multiplies and attends, in the shapes of the model: what every
row of `bench_gpu` is made of.

A kernel that the device or this PyTorch does not have is listed with its reason.

Shape suffixes: M tokens, K summed side, N other side of a weight; B batch, H heads, S
tokens, D head width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention

from benchmarks.device_timer import seconds_per_call
from benchmarks.synthetic import SEED, ModelSize

SQUARE = 8192
"""Side of the product that shows what the device can do at best; smaller models have
one of eight widths."""

BACKENDS = {
    "chosen by torch": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def measure(
    size: ModelSize, device: torch.device, calls: int
) -> dict[str, dict[str, Any]]:
    """Name -> milliseconds and TFLOP/s, or why it could not be run; one sample with one
    reference."""
    found = {}
    for name, flops, work in [*_products(size, device), *_attention(size, device)]:
        try:
            with warnings.catch_warnings(record=True) as said:
                seconds = seconds_per_call(work(), device, calls)
            found[name] = {"ms": 1e3 * seconds, "tflops": flops / seconds / 1e12}
        except (RuntimeError, AssertionError, ValueError) as error:
            # Why a kernel of attention is not taken, torch says in warnings before the
            # error.
            reasons = [str(warning.message) for warning in said] + [str(error)]
            found[name] = {"failed": " ".join(" ".join(reasons).split())[:300]}
    return found


def best_bf16_product(found: dict[str, dict[str, Any]]) -> float | None:
    """TFLOP/s of the fastest product of bf16: what MFU and HFU are shares of."""
    rates = [
        one["tflops"]
        for name, one in found.items()
        if name.startswith("bf16 ") and "tflops" in one
    ]
    return max(rates, default=None)


def lines(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A table."""
    width = max(map(len, found))
    yield f"{'kernel':<{width}}  {'ms':>9}  {'TFLOP/s':>8}"
    for name, one in found.items():
        if "failed" in one:
            yield f"{name:<{width}}  not possible: {one['failed']}"
        else:
            yield f"{name:<{width}}  {one['ms']:9.3f}  {one['tflops']:8.1f}"


Case = tuple[str, float, Callable[[], Callable[[], object]]]
"""Name, floating-point operations of a call, and what makes the call ready."""


# ------------------------------------------------------------ products


def _products(size: ModelSize, device: torch.device) -> Iterator[Case]:
    width = size.heads * size.head_dim
    # Some CPUs take seconds for a product of e4m3 that is eight times as wide.
    square = min(SQUARE, 8 * width if device.type == "cuda" else width)
    tokens = 2 * size.tokens
    for m, k, n in (
        (square, square, square),
        (tokens, width, width),
        (tokens, width, 4 * width),
    ):
        for name, make in MATMUL_PAIRS.items():
            yield (
                f"{name} {m}x{k}x{n}",
                2.0 * m * k * n,
                lambda make=make, sides=(m, k, n): make(*sides, device),
            )


def _normal(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator(device).manual_seed(SEED), device=device
    )


def _bf16_forward(m: int, k: int, n: int, device: torch.device) -> Callable[[], Tensor]:
    x_MK, weight_NK = _normal(device, m, k).bfloat16(), _normal(device, n, k).bfloat16()
    return lambda: linear(x_MK, weight_NK)


def _bf16_backward(
    m: int, k: int, n: int, device: torch.device
) -> Callable[[], Tensor]:
    g_MN, weight_NK = _normal(device, m, n).bfloat16(), _normal(device, n, k).bfloat16()
    return lambda: g_MN @ weight_NK


def _int8(device: torch.device, *shape: int) -> Tensor:
    return _normal(device, *shape).mul_(40).clamp_(-127, 127).to(torch.int8)


def _int8_forward(m: int, k: int, n: int, device: torch.device) -> Callable[[], Tensor]:
    x_MK, weight_NK = _int8(device, m, k), _int8(device, n, k)
    return lambda: torch._int_mm(x_MK, weight_NK.t())


def _int8_backward(
    m: int, k: int, n: int, device: torch.device
) -> Callable[[], Tensor]:
    g_MN, weight_NK = _int8(device, m, n), _int8(device, n, k)
    if not weight_NK.is_cuda:
        return lambda: torch._int_mm(g_MN, weight_NK)
    # cuBLASLt multiplies int8 row-major times column-major only: the copy into that
    # layout counts.
    return lambda: torch._int_mm(g_MN, weight_NK.t().contiguous().t())


def _e4m3(device: torch.device, *shape: int) -> Tensor:
    return _normal(device, *shape).to(torch.float8_e4m3fn)


def _e4m3_rows(m: int, k: int, n: int, device: torch.device) -> Callable[[], Tensor]:
    x_MK, weight_NK = _e4m3(device, m, k), _e4m3(device, n, k)
    scale_M1, scale_1N = (
        torch.ones(m, 1, device=device),
        torch.ones(1, n, device=device),
    )
    return lambda: torch._scaled_mm(
        x_MK, weight_NK.t(), scale_M1, scale_1N, out_dtype=torch.bfloat16
    )


def _e4m3_tensor(
    m: int, k: int, n: int, device: torch.device, fast: bool = False
) -> Callable[[], Tensor]:
    """fast: sums are kept in fewer bits."""
    x_MK, weight_NK = _e4m3(device, m, k), _e4m3(device, n, k)
    scale = torch.ones((), device=device)
    settings = {"out_dtype": torch.bfloat16, "use_fast_accum": fast}
    return lambda: torch._scaled_mm(x_MK, weight_NK.t(), scale, scale, **settings)


MATMUL_PAIRS = {
    "bf16 forward": _bf16_forward,
    "bf16 backward": _bf16_backward,
    "int8 forward": _int8_forward,
    "int8 backward": _int8_backward,
    "e4m3 a scale per row": _e4m3_rows,
    "e4m3 one scale": _e4m3_tensor,
    "e4m3 one scale, fast sums": partial(_e4m3_tensor, fast=True),
}
"""Name -> what makes a product of these sides ready. Forward reads the weight by
columns, backward by rows."""


# ------------------------------------------------------------ attention


def _attention(size: ModelSize, device: torch.device) -> Iterator[Case]:
    tokens = 2 * size.tokens + size.text_tokens
    forward = 4.0 * tokens**2 * size.heads * size.head_dim
    for name, backend in BACKENDS.items():
        for masked in (False, True):
            for backward in (False, True):
                label = f"attention {name}{', mask' * masked}, {'forward and backward' if backward else 'forward'}"
                yield (
                    label,
                    forward * (3 if backward else 1),
                    lambda backend=backend, masked=masked, backward=backward: _attend(
                        size, tokens, device, backend, masked, backward
                    ),
                )


def _attend(
    size: ModelSize,
    tokens: int,
    device: torch.device,
    backend: SDPBackend | None,
    masked: bool,
    backward: bool,
) -> Callable[[], None]:
    """bf16, laid out as the model's blocks do it; the mask, all true, is what diffusers
    makes of a text's mask."""
    drawn = [
        _normal(device, 1, tokens, size.heads, size.head_dim)
        .bfloat16()
        .requires_grad_(backward)
        for _ in "qkv"
    ]
    mask = (
        torch.ones(1, 1, 1, tokens, dtype=torch.bool, device=device) if masked else None
    )

    def call() -> None:
        query, key, value = (tensor_BSHD.transpose(1, 2) for tensor_BSHD in drawn)
        with sdpa_kernel(backend) if backend else nullcontext():
            out_BHSD = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        if backward:
            torch.autograd.grad(out_BHSD, drawn, torch.ones_like(out_BHSD))

    return call
