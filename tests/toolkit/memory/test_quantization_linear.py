"""A frozen layer in the place of an nn.Linear."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.diffusers_reference import relative
from toolkit.memory.quantization import QuantizedLinear, quantize_weight
from toolkit.number_types import QTYPES


def pair(
    qtype: str, dtype: torch.dtype = torch.float32, bias: bool = True
) -> tuple[QuantizedLinear, nn.Linear]:
    """A frozen layer, and a plain one with its dequantized weight."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Linear(128, 64, bias=bias, dtype=dtype).requires_grad_(False)
    frozen = QuantizedLinear(
        quantize_weight(plain.weight, qtype), copy.deepcopy(plain.bias)
    )
    plain.weight.data.copy_(frozen.weight.dequantize())
    return frozen, plain


@pytest.mark.parametrize("qtype", QTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_the_plain_layer_does(qtype: str, bias: bool) -> None:
    frozen, plain = pair(qtype, bias=bias)
    for shape in ((128,), (3, 128), (2, 20, 128), (0, 128)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        assert frozen(x).shape == plain(x).shape
        torch.testing.assert_close(frozen(x), plain(x), rtol=1e-5, atol=1e-5)


def test_it_moves_as_a_plain_layer_does() -> None:
    frozen, plain = pair("int8")
    assert frozen.state_dict().keys() == {"weight.codes_OI", "weight.scale_O1", "bias"}
    x = torch.randn(20, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert relative(frozen.to(torch.bfloat16)(x), plain.to(torch.bfloat16)(x)) < 6e-3
    assert frozen.to("meta").weight.device.type == "meta"
