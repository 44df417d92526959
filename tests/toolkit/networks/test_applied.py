"""Files applied to a frozen model against the weights that they make of its weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.memory.quantization import quantizer
from toolkit.networks.applied import AppliedAdapters, NamedAdapters
from toolkit.networks.lora_formats import LayerDelta

CPU = torch.device("cpu")
INPUTS, OUTPUTS = 128, 192


def matrix(seed: int, *shape: int) -> Tensor:
    return (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        / shape[-1] ** 0.5
    )


def lora(**more: Tensor) -> LayerDelta:
    return LayerDelta(
        {"down": matrix(1, 4, INPUTS), "up": matrix(2, OUTPUTS, 4), **more}, 0.7
    )


CHANGES = {
    "LoRA": lora(),
    "DoRA of inputs": lora(dora_scale=matrix(3, 1, INPUTS).abs() + 0.5),
    "DoRA of outputs": lora(dora_scale=matrix(3, OUTPUTS, 1).abs() + 0.5),
    "LoHa": LayerDelta(
        {
            "hada_w1_a": matrix(1, OUTPUTS, 3),
            "hada_w1_b": matrix(2, 3, INPUTS),
            "hada_w2_a": matrix(3, OUTPUTS, 3),
            "hada_w2_b": matrix(4, 3, INPUTS),
        },
        0.5,
    ),
    "LoKr": LayerDelta(
        {
            "lokr_w1": matrix(1, 8, 4),
            "lokr_w2_a": matrix(2, OUTPUTS // 8, 5),
            "lokr_w2_b": matrix(3, 5, INPUTS // 4),
        },
        0.5,
    ),
}


def model() -> nn.Sequential:
    net = nn.Sequential(
        nn.Linear(INPUTS, OUTPUTS), nn.Linear(OUTPUTS, INPUTS)
    ).requires_grad_(False)
    net[0].weight.copy_(matrix(5, OUTPUTS, INPUTS))
    net[1].weight.copy_(matrix(6, INPUTS, OUTPUTS))
    return net


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("qtype", ["", "int8"])
def test_the_output_is_that_of_the_changed_weight(kind: str, qtype: str) -> None:
    net, change, x = model(), CHANGES[kind], matrix(7, 2, 5, INPUTS)
    if qtype:
        quantizer(qtype)(net, "block")
    weight_OI = (net[0].weight.dequantize() if qtype else net[0].weight).float()
    before = net[0](x)
    applied = AppliedAdapters(net, [{"0": change}], CPU)
    for strength in (1.0, -0.5):
        applied.use([({"0": change}, strength)])
        expected = before + strength * (x @ change.delta_for(weight_OI).T)
        torch.testing.assert_close(net[0](x), expected, rtol=1e-4, atol=1e-4)
    applied.use([({"0": change}, 0.0)])
    assert torch.equal(net[0](x), before)
    applied.use([])
    assert torch.equal(net[0](x), before)


@pytest.mark.parametrize(
    "parts",
    [lora().parts, {"up": torch.zeros(OUTPUTS, 0), "down": torch.zeros(0, INPUTS)}],
)
def test_a_bias_is_added_by_its_strength(parts: dict[str, Tensor]) -> None:
    net, x, bias_O = model(), matrix(7, 2, 5, INPUTS), matrix(8, OUTPUTS)
    change = LayerDelta(parts, 0.7, bias_O)
    expected = net[0](x) - 0.5 * (x @ change.delta().T + bias_O)
    named = NamedAdapters(net, {"file": ({"0": change}, -0.5)}, CPU, torch.float32)
    with named.using("file"):
        torch.testing.assert_close(net[0](x), expected, rtol=1e-4, atol=1e-4)
    net[1].bias = None
    with pytest.raises(UserError, match="the bias of 1 is changed"):
        AppliedAdapters(net, [{"1": change}], CPU).use([({"1": change}, 1.0)])


def test_several_files_add_up_and_are_exchanged() -> None:
    net, x = model(), matrix(7, 3, INPUTS)
    second = LayerDelta(
        {"down": matrix(8, 2, OUTPUTS), "up": matrix(9, INPUTS, 2)}, 1.0
    )
    files = [{"0": CHANGES["LoRA"]}, {"0": CHANGES["LoKr"], "1": second}]
    parameters = {name for name, _ in net.named_parameters()}
    weight, plain = net[0].weight, net(x)
    applied = AppliedAdapters(net, files, CPU)
    applied.use([(files[0], 0.5), (files[1], 2.0)])
    both = weight + 0.5 * files[0]["0"].delta() + 2 * files[1]["0"].delta()
    torch.testing.assert_close(
        net[0](x),
        nn.functional.linear(x, both, net[0].base_layer.bias),
        rtol=1e-5,
        atol=1e-5,
    )
    applied.use([(files[0], 1.0)])
    alone = nn.functional.linear(
        x, weight + files[0]["0"].delta(), net[0].base_layer.bias
    )
    torch.testing.assert_close(net[0](x), alone, rtol=1e-5, atol=1e-5)
    applied.use([])
    assert torch.equal(net(x), plain)
    assert {
        name.replace(".base_layer", "") for name, _ in net.named_parameters()
    } == parameters
