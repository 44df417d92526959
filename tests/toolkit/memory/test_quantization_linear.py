"""A frozen layer in the place of an nn.Linear."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

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


def test_it_is_a_linear_layer_to_peft() -> None:
    """LoRA layers attach, start without effect, and get the gradient that they get on
    the plain layer."""
    from peft import LoraConfig, inject_adapter_in_model

    gradients = []
    for layer in pair("int4"):
        model = nn.ModuleDict({"layer": layer})
        with torch.random.fork_rng():
            torch.manual_seed(1)
            inject_adapter_in_model(LoraConfig(r=4, target_modules=["layer"]), model)
        assert type(model["layer"]).__module__ == "peft.tuners.lora.layer"
        x = torch.randn(2, 20, 128, generator=torch.Generator().manual_seed(1))
        assert torch.equal(model["layer"](x), layer(x))
        model["layer"](x).square().sum().backward()
        gradients.append(model["layer"].lora_B["default"].weight.grad)
    assert relative(*gradients) < 1e-5


def test_it_moves_as_a_plain_layer_does() -> None:
    frozen, plain = pair("int8")
    assert frozen.state_dict().keys() == {"weight.codes_OI", "weight.scale_O1", "bias"}
    x = torch.randn(20, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert relative(frozen.to(torch.bfloat16)(x), plain.to(torch.bfloat16)(x)) < 6e-3
    assert frozen.to("meta").weight.device.type == "meta"


def test_the_bias_is_frozen_too() -> None:
    frozen, _ = pair("int8")
    assert not frozen.bias.requires_grad
    assert [name for name, _ in frozen.named_parameters()] == ["bias"]


def test_checkpointing_changes_no_bit() -> None:
    """What is recomputed in the backward pass takes the same way."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Linear(128, 64, dtype=torch.bfloat16)
    frozen = QuantizedLinear(quantize_weight(plain.weight.detach(), "int8"), plain.bias)
    first = torch.randn(
        2, 40, 128, generator=torch.Generator().manual_seed(1)
    ).bfloat16()
    gradients = []
    for run in (frozen, lambda x: checkpoint(frozen, x, use_reentrant=False)):
        x = first.clone().requires_grad_()
        run(x * 2).float().square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
