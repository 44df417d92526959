"""The layer against LyCORIS' own and against what ComfyUI makes of the file."""

import pytest
import torch
from lycoris.modules.locon import LoConModule
from torch import Tensor

from tests.diffusers_reference import relative
from tests.measured import at_most
from toolkit.networks.lora import DoraNetwork


def trained(
    rank: int = 4, alpha: float = 2.0, size: int = 40
) -> tuple[torch.nn.Sequential, DoraNetwork]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, size))
    network = DoraNetwork(["0"], rank, alpha, dropout=0.0, seed=1)
    network.attach(model)
    for p in network.parameters().values():
        p.data += 0.2 * torch.randn(p.shape)
    return model, network


@torch.no_grad()
@pytest.mark.parametrize(("rank", "alpha"), [(4, 4.0), (3, 1.5)])
def test_the_layer_computes_what_lycoris_trains(rank: int, alpha: float) -> None:
    """LyCORIS with `wd_on_output: false`."""
    model, network = trained(rank, alpha)
    theirs = LoConModule(
        "x",
        model[0].base_layer,
        lora_dim=rank,
        alpha=alpha,
        weight_decompose=True,
        wd_on_out=False,
    )
    parts = network.layer_weights("0")
    theirs.lora_down.weight.copy_(parts["lora_A.weight"])
    theirs.lora_up.weight.copy_(parts["lora_B.weight"])
    theirs.dora_scale.copy_(parts["dora_scale"])
    x = torch.randn(2, 5, 24)
    base = model[0].base_layer(x)
    at_most(
        f"DoRA layer, rank {rank}, alpha {alpha:g}",
        relative(model[0](x) - base, theirs(x) - base),
        1e-5,
    )


def test_gradients_take_the_norm_as_a_constant() -> None:
    """As the method does, against torch's own derivative."""
    model, network = trained()
    x = torch.randn(2, 5, 24)
    model[0](x).square().sum().backward()
    parts = {
        name: p.detach().clone().requires_grad_()
        for name, p in network.layer_weights("0").items()
    }
    base = model[0].base_layer
    changed_OI = base.weight + 0.5 * parts["lora_B.weight"] @ parts["lora_A.weight"]
    norm_1I = changed_OI.detach().norm(dim=0, keepdim=True)
    expected_OI = parts["dora_scale"] * changed_OI / norm_1I
    torch.nn.functional.linear(x, expected_OI, base.bias).square().sum().backward()
    for name, p in network.layer_weights("0").items():
        assert relative(p.grad, parts[name].grad) < 1e-5, name


def comfyui(weight_OI: Tensor, file: dict[str, Tensor]) -> Tensor:
    """m (W + d) / |W + d| with norms of columns: what ComfyUI a125cd84 was measured to
    make of a [1, in] magnitude."""
    scale = file["alpha"] / file["lora_A.weight"].shape[0]
    changed_OI = weight_OI + scale * file["lora_B.weight"] @ file["lora_A.weight"]
    return file["dora_scale"] * changed_OI / changed_OI.square().sum(0).sqrt()


@torch.no_grad()
@pytest.mark.parametrize("size", [40, 24])
def test_comfyui_makes_the_trained_weight_of_the_file(size: int) -> None:
    model, network = trained(size=size)
    file = {
        name.removeprefix("diffusion_model.0."): t
        for name, t in network.export(network.parameters()).items()
    }
    assert file["dora_scale"].shape == (1, 24)
    layer = model[0]
    ours = layer(torch.eye(24)) - layer.base_layer.bias
    theirs = comfyui(layer.base_layer.weight, file).T
    assert relative(theirs, layer.base_layer.weight.T) > 0.1
    at_most(
        f"DoRA in ComfyUI, {size} outputs, change of a weight",
        relative(ours, theirs),
        1e-5,
    )


@torch.no_grad()
def test_a_small_change_of_the_magnitude_is_seen_in_bfloat16() -> None:
    """1.001 is 1 in bfloat16."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 64)).bfloat16()
    network = DoraNetwork(["0"], 4, 4.0, dropout=0.0, seed=1)
    network.attach(model)
    network.layer_weight("0", "dora_scale").mul_(1.001)
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    change = model[0].delta(x).float()
    expected = 0.001 * torch.nn.functional.linear(
        x.float(), model[0].base_layer.weight.float()
    )
    assert relative(change, expected) < 0.01
