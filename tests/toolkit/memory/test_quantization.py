"""Products with stored weights against the same products with the dequantized weight,
written out."""

from __future__ import annotations

import warnings
import weakref

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.live_bytes import Kernels
from tests.diffusers_reference import relative
from toolkit.memory.quantization import (
    QuantizedWeight,
    RowwiseQuantized,
    WithRecoveryLora,
    ZeroPointQuantized,
    as_stored,
    decode_e4m3,
    quantize_weight,
)
from toolkit.number_types import QTYPES, UINT_BITS

INPUTS, OUTPUTS = 256, 96
ROUNDING = {
    torch.float32: 1e-6,
    torch.bfloat16: 6e-3,
    torch.float16: 1e-3,
    torch.float64: 1e-12,
}
"""Relative error of a product that is summed in float32 at least and rounded to this
type once or twice."""

KINDS = (*QTYPES, "recovered", "as_stored")


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def stored(kind: str, dtype: torch.dtype) -> QuantizedWeight:
    weight_OI = (
        0.02 * normal(OUTPUTS, INPUTS, seed=0) * torch.logspace(-1, 1, OUTPUTS)[:, None]
    ).to(dtype)
    if kind == "recovered":
        up_OR, down_RI = (
            0.1 * normal(OUTPUTS, 4, seed=1),
            0.1 * normal(4, INPUTS, seed=2),
        )
        return WithRecoveryLora(quantize_weight(weight_OI, "int4"), up_OR, down_RI)
    if kind == "as_stored":
        scale_O1 = weight_OI.float().abs().amax(1, keepdim=True) / 448
        return as_stored(
            (weight_OI.float() / scale_O1).to(torch.float8_e4m3fn),
            scale_O1,
            0,
            weight_OI,
        )
    return quantize_weight(weight_OI, kind)


def forward_and_backward(
    weight: QuantizedWeight | Tensor, x: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Output and gradient to the input for one gradient of the output."""
    x = x.detach().requires_grad_()
    y = functional.linear(x, weight, bias)
    (grad,) = torch.autograd.grad(
        y, x, normal(*y.shape, seed=5, dtype=y.dtype).to(y.device)
    )
    return y, grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_products_are_those_of_the_dequantized_weight(
    kind: str, dtype: torch.dtype, with_bias: bool
) -> None:
    weight = stored(kind, dtype)
    x = normal(2, 20, INPUTS, seed=3, dtype=dtype)
    bias = normal(OUTPUTS, seed=4, dtype=dtype) if with_bias else None
    dequantized = weight.dequantize()
    assert (dequantized.shape, dequantized.dtype) == ((OUTPUTS, INPUTS), dtype)
    ours = forward_and_backward(weight, x, bias)
    theirs = forward_and_backward(
        dequantized.double(), x.double(), None if bias is None else bias.double()
    )
    for own, expected in zip(ours, theirs, strict=True):
        assert own.dtype == dtype
        assert relative(own, expected) < ROUNDING[dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_kept_for_the_backward_pass(kind: str) -> None:
    """No tensor is saved, and the input is gone when its owner lets go of it."""
    weight = stored(kind, torch.float32)
    kept = []
    x = normal(2, 20, INPUTS, seed=3).requires_grad_()
    h = x * 1
    seen = weakref.ref(h)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.shape) or t, lambda t: t
    ):
        y = functional.linear(h, weight, torch.ones(OUTPUTS))
    del h
    assert (kept, seen()) == ([], None)
    y.sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_weight_is_no_parameter_and_gets_no_gradient() -> None:
    for kind in KINDS:
        weight = stored(kind, torch.float32)
        assert (
            list(weight.parameters()) == []
            and weight.requires_grad is False
            and weight.detach() is weight
        )


@pytest.mark.parametrize("kind", KINDS)
def test_casting_the_model_never_touches_the_codes(kind: str) -> None:
    weight = stored(kind, torch.float32)
    codes = {name: b for name, b in weight.named_buffers() if not b.is_floating_point()}
    assert codes
    cast = stored(kind, torch.float32).to(torch.bfloat16)
    for name, buffer in codes.items():
        assert torch.equal(cast.get_buffer(name), buffer)
    assert cast.device == torch.device("cpu")


def test_only_products_are_defined_for_a_stored_weight() -> None:
    with pytest.raises(TypeError):
        torch.add(stored("int8", torch.float32), 1)


@pytest.mark.parametrize("bits", UINT_BITS.values())
def test_codes_of_any_number_of_bits_and_groups_come_back(bits: int) -> None:
    codes_GS = torch.randint(
        0,
        2**bits,
        (13, 6),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    ones_G1 = torch.ones(13, 1)
    weight = ZeroPointQuantized(
        codes_GS, bits, ones_G1, ones_G1.to(torch.uint8), (13, 6)
    )
    assert torch.equal(weight.codes(), codes_GS)
    assert torch.equal(weight.dequantize(), codes_GS.float() - 1)


@pytest.mark.parametrize(
    ("qtype", "most"),
    [("int8", 2), ("int4", 4), ("int2", 4), ("uint4", 4), ("uint3", 7)],
)
def test_few_kernels_dequantize_a_weight(qtype: str, most: int) -> None:
    """Where nothing compiles them, launching them costs more than the work: three times
    for each layer and image."""
    weight = stored(qtype, torch.bfloat16)
    with Kernels() as kernels:
        weight.dequantize()
    assert kernels.calls.total() <= most, kernels.calls


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_every_e4m3_byte_has_its_value(dtype: torch.dtype) -> None:
    codes = torch.arange(-128, 128, dtype=torch.int8).view(16, 16)
    expected = codes.view(torch.float8_e4m3fn).to(dtype)
    torch.testing.assert_close(
        decode_e4m3(codes, dtype), expected, rtol=0, atol=0, equal_nan=True
    )
    with warnings.catch_warnings(action="error"):
        found = torch.compile(decode_e4m3, backend="eager", fullgraph=True)(
            codes, dtype
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@torch.no_grad()
def test_a_recovered_weight_is_the_sum_of_both() -> None:
    base = stored("int4", torch.float32)
    up_OR, down_RI = normal(OUTPUTS, 4, seed=1), normal(4, INPUTS, seed=2)
    both = WithRecoveryLora(base, up_OR, down_RI)
    torch.testing.assert_close(both.dequantize(), base.dequantize() + up_OR @ down_RI)


def test_half_precision_does_not_overflow_on_large_codes() -> None:
    """The sum of unscaled codes may be beyond float16 where the product is not."""
    weight = RowwiseQuantized(
        torch.full((8, 1024), 127, dtype=torch.int8),
        torch.full((8, 1), 1e-4, dtype=torch.float16),
    )
    y, grad = forward_and_backward(
        weight, torch.full((20, 1024), 2.0, dtype=torch.float16), None
    )
    assert bool(torch.isfinite(y).all()) and bool(torch.isfinite(grad).all())
    torch.testing.assert_close(
        y.float(), torch.full((20, 8), 127e-4 * 2048), rtol=0.02, atol=0
    )
