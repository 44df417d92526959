"""Products with stored weights against the same products with the dequantized weight, written out."""

from __future__ import annotations

import warnings
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.live_bytes import Kernels
from tests.diffusers_reference import relative
from toolkit.memory.quantization import (
    Int8Matmuls,
    QuantizedLinearFn,
    QuantizedWeight,
    RowwiseQuantized,
    WithRecoveryLora,
    ZeroPointQuantized,
    as_stored,
    code_places,
    decode_e4m3,
    quantize_weight,
    unpack,
)
from toolkit.number_types import QTYPES, UINT_BITS

INPUTS, OUTPUTS = 256, 96
NAN, INFINITY = float("nan"), float("inf")
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3, torch.float64: 1e-12}
"""Relative error of a product that is summed in float32 at least and rounded to this type once or twice."""

KINDS = (*QTYPES, "recovered", "as_stored")

BOTH = Int8Matmuls(forward=True, backward=True)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def stored(kind: str, dtype: torch.dtype, in_int8: Int8Matmuls | None = None) -> QuantizedWeight:
    weight_OI = (0.02 * normal(OUTPUTS, INPUTS, seed=0) * torch.logspace(-1, 1, OUTPUTS)[:, None]).to(dtype)
    if kind == "recovered":
        up_OR, down_RI = 0.1 * normal(OUTPUTS, 4, seed=1), 0.1 * normal(4, INPUTS, seed=2)
        return WithRecoveryLora(quantize_weight(weight_OI, "int4"), up_OR, down_RI)
    if kind == "as_stored":
        scale_O1 = weight_OI.float().abs().amax(1, keepdim=True) / 448
        return as_stored((weight_OI.float() / scale_O1).to(torch.float8_e4m3fn), scale_O1, 0, weight_OI)
    weight = quantize_weight(weight_OI, kind)
    if kind == "int8" and in_int8:
        weight.in_int8 = in_int8
    return weight


def forward_and_backward(weight: QuantizedWeight | Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output and gradient to the input for one gradient of the output."""
    x = x.detach().requires_grad_()
    y = functional.linear(x, weight, bias)
    (grad,) = torch.autograd.grad(y, x, normal(*y.shape, seed=5, dtype=y.dtype).to(y.device))
    return y, grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_products_are_those_of_the_dequantized_weight(kind: str, dtype: torch.dtype, with_bias: bool) -> None:
    weight = stored(kind, dtype)
    x = normal(2, 20, INPUTS, seed=3, dtype=dtype)
    bias = normal(OUTPUTS, seed=4, dtype=dtype) if with_bias else None
    dequantized = weight.dequantize()
    assert (dequantized.shape, dequantized.dtype) == ((OUTPUTS, INPUTS), dtype)
    ours = forward_and_backward(weight, x, bias)
    theirs = forward_and_backward(dequantized.double(), x.double(), None if bias is None else bias.double())
    for own, expected in zip(ours, theirs, strict=True):
        assert own.dtype == dtype
        assert relative(own, expected) < ROUNDING[dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_derivative(kind: str) -> None:
    weight = stored(kind, torch.float32)
    x = normal(2, 3, INPUTS, seed=3, dtype=torch.float64).requires_grad_()
    bias = normal(OUTPUTS, seed=4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: QuantizedLinearFn.apply(x, weight, bias), (x,), atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_int8_the_inputs_are_rounded_and_nothing_else(dtype: torch.dtype) -> None:
    """The scale of an output row goes into the gradient before that is rounded."""

    def rounded(x: Tensor) -> Tensor:
        scale = x.abs().amax(dim=-1, keepdim=True) / 127
        return (x / scale).round() * scale

    weight = stored("int8", dtype, BOTH)
    x = normal(2, 20, INPUTS, seed=3, dtype=dtype)
    bias = normal(OUTPUTS, seed=4, dtype=dtype)
    y, grad = forward_and_backward(weight, x, bias)
    scale, codes = weight.scale_O1.double(), weight.codes_OI.double()
    g = normal(*y.shape, seed=5, dtype=dtype).double()
    expected = (rounded(x.double()) @ (scale * codes).T + bias.double(), rounded(g * scale.T) @ codes)
    exact = forward_and_backward((scale * codes), x.double(), bias.double())
    for own, rounded_product, product in zip((y, grad), expected, exact, strict=True):
        assert own.dtype == dtype
        assert relative(own, rounded_product) < max(ROUNDING[dtype], 5e-4)  # a tie may be rounded the other way
        assert 1e-3 < relative(own, product) < 0.03


def test_each_product_is_an_int8_one_by_itself_and_never_of_few_rows() -> None:
    exact = stored("int8", torch.float32)
    many, few = normal(2, 20, INPUTS, seed=3), normal(2, 8, INPUTS, seed=3)
    for choice in (Int8Matmuls(), Int8Matmuls(forward=True), Int8Matmuls(backward=True), BOTH):
        weight = stored("int8", torch.float32, choice)
        for x, rounded in ((many, choice), (few, (False, False))):
            results = zip(forward_and_backward(weight, x, None), forward_and_backward(exact, x, None), strict=True)
            assert [not torch.equal(own, plain) for own, plain in results] == [*rounded]


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_int8_a_row_that_is_not_finite_stays_so_and_leaves_the_others_alone(dtype: torch.dtype, value) -> None:
    weight = stored("int8", dtype, BOTH)
    x = normal(20, INPUTS, seed=3, dtype=dtype).requires_grad_()
    g = normal(20, OUTPUTS, seed=5, dtype=dtype)
    found = []
    for row in (None, 3):
        if row is not None:
            x.data[row, 7] = g[row, 9] = value
        y = functional.linear(x, weight)
        found.append((y.detach(), *torch.autograd.grad(y, x, g)))
    others = [row for row in range(20) if row != 3]
    for good, broken in zip(*found, strict=True):
        assert not broken[3].isfinite().any()
        assert torch.equal(broken[others], good[others])


def test_while_it_is_watched_a_layer_shows_the_rows_that_would_be_rounded() -> None:
    weight, seen = stored("int8", torch.float32), {}
    weight.watch = lambda way, rows: seen.update({way: rows})
    x = normal(20, INPUTS, seed=3)
    forward_and_backward(weight, x, None)
    g = normal(20, OUTPUTS, seed=5)
    assert torch.equal(seen["forward"], x) and torch.equal(seen["backward"], g * weight.scale_O1.t())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_int8", [Int8Matmuls(), BOTH])
def test_nothing_is_kept_for_the_backward_pass(kind: str, in_int8: Int8Matmuls) -> None:
    """No tensor is saved, and the input is gone when its owner lets go of it."""
    weight = stored(kind, torch.float32, in_int8)
    kept = []
    x = normal(2, 20, INPUTS, seed=3).requires_grad_()
    h = x * 1
    seen = weakref.ref(h)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        y = functional.linear(h, weight, torch.ones(OUTPUTS))
    del h
    assert (kept, seen()) == ([], None)
    y.sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_weight_is_no_parameter_and_gets_no_gradient() -> None:
    for kind in KINDS:
        weight = stored(kind, torch.float32)
        assert list(weight.parameters()) == [] and weight.requires_grad is False and weight.detach() is weight


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


@pytest.mark.parametrize("bits", [2, 4])
def test_packed_values_come_back(bits: int) -> None:
    from optimum.quanto.tensor.packed import PackedTensor

    values = torch.randint(0, 2**bits, (17, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    places = code_places(bits, torch.device("cpu"))
    assert torch.equal(unpack(PackedTensor.pack(values, bits)._data, bits, places)[:17], values)


@pytest.mark.parametrize("bits", UINT_BITS.values())
def test_codes_of_any_number_of_bits_and_groups_come_back(bits: int) -> None:
    codes_GS = torch.randint(0, 2**bits, (13, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ones_G1 = torch.ones(13, 1)
    weight = ZeroPointQuantized(codes_GS, bits, ones_G1, ones_G1.to(torch.uint8), (13, 6))
    assert torch.equal(weight.codes(), codes_GS)
    assert torch.equal(weight.dequantize(), codes_GS.float() - 1)


@pytest.mark.parametrize(("qtype", "most"), [("int8", 2), ("int4", 4), ("int2", 4), ("uint4", 4), ("uint3", 7)])
def test_few_kernels_dequantize_a_weight(qtype: str, most: int) -> None:
    """Where nothing compiles them, launching them costs more than the work: three times for each layer and image."""
    weight = stored(qtype, torch.bfloat16)
    with Kernels() as kernels:
        weight.dequantize()
    assert kernels.calls.total() <= most, kernels.calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_e4m3_byte_has_its_value(dtype: torch.dtype) -> None:
    codes = torch.arange(-128, 128, dtype=torch.int8).view(16, 16)
    expected = codes.view(torch.float8_e4m3fn).to(dtype)
    torch.testing.assert_close(decode_e4m3(codes, dtype), expected, rtol=0, atol=0, equal_nan=True)
    with warnings.catch_warnings(action="error"):
        found = torch.compile(decode_e4m3, backend="eager", fullgraph=True)(codes, dtype)
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
        torch.full((8, 1024), 127, dtype=torch.int8), torch.full((8, 1), 1e-4, dtype=torch.float16)
    )
    y, grad = forward_and_backward(weight, torch.full((20, 1024), 2.0, dtype=torch.float16), None)
    assert bool(torch.isfinite(y).all()) and bool(torch.isfinite(grad).all())
    torch.testing.assert_close(y.float(), torch.full((20, 8), 127e-4 * 2048), rtol=0.02, atol=0)


def test_a_stored_weight_stands_in_a_module_as_a_parameter_would() -> None:
    layer = nn.Module()
    layer.weight = stored("int4", torch.bfloat16)
    parts = {f"weight.{part}" for part in ("packed", "places", "scale_G1", "shift_G1")}
    assert {name for name, _ in layer.named_buffers()} == parts
    assert layer.state_dict().keys() == {name for name, _ in layer.named_buffers()}
