"""Quantized matmuls of each type on a CUDA device, against float64; fp8 among them."""

from __future__ import annotations

import pytest
import torch

from tests.diffusers_reference import relative
from tests.toolkit.memory.test_quantization import (
    INPUTS,
    KINDS,
    OUTPUTS,
    ROUNDING,
    forward_and_backward,
    normal,
    stored,
)
from toolkit.memory.quantization import decode_e4m3, quantize_weight
from toolkit.number_types import QTYPES

pytestmark = pytest.mark.cuda

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

MORE = 3
"""A GPU's kernels may sum in several parts, each rounded; the CPU's limit of rounding,
so many times."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_products_are_those_of_the_dequantized_weight(
    cuda: torch.device, kind: str, dtype: torch.dtype, with_bias: bool
) -> None:
    weight = stored(kind, dtype).to(cuda)
    x = normal(2, 20, INPUTS, seed=3, dtype=dtype).to(cuda)
    bias = normal(OUTPUTS, seed=4, dtype=dtype).to(cuda) if with_bias else None
    dequantized = weight.dequantize()
    assert dequantized.device == weight.device == cuda
    ours = forward_and_backward(weight, x, bias)
    theirs = forward_and_backward(
        dequantized.double(), x.double(), None if bias is None else bias.double()
    )
    for own, expected in zip(ours, theirs, strict=True):
        assert own.dtype == dtype
        assert relative(own, expected) < MORE * ROUNDING[dtype]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_weight_is_the_same_as_on_the_cpu(
    cuda: torch.device, kind: str, dtype: torch.dtype
) -> None:
    weight = stored(kind, dtype)
    here = weight.dequantize().double()
    assert relative(weight.to(cuda).dequantize().cpu(), here) < ROUNDING[dtype]


@pytest.mark.parametrize("kind", QTYPES)
def test_quantized_on_the_device_a_weight_loses_as_much(
    cuda: torch.device, kind: str
) -> None:
    weight_OI = 0.02 * normal(OUTPUTS, INPUTS, seed=0)
    losses = [
        relative(
            quantize_weight(weight_OI.to(device), kind).dequantize().cpu(), weight_OI
        )
        for device in ("cpu", cuda)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_of_fp8_is_decoded(cuda: torch.device, dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.int8)
    there = decode_e4m3(codes.to(cuda), dtype)
    assert there.dtype == dtype
    torch.testing.assert_close(
        there.cpu(), decode_e4m3(codes, dtype), rtol=0, atol=0, equal_nan=True
    )
