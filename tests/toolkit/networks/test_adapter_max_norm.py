"""The limit on the norm of a layer's change, for every kind of adapter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit.config.sections.network import NetworkConfig
from toolkit.contracts import network_kinds as network_kinds
from toolkit.networks.adapter import apply_max_norm_, product_norm

YES, NO = torch.tensor(True), torch.tensor(False)
KINDS = {
    "lora": {},
    "dora": {},
    "loha": {},
    "lokr": {"linear": 2, "factor": 4},
    "lokr whole": {"lokr_full_rank": True, "factor": 4},
}
FACTORS = {"lora": 2, "dora": 2, "loha": 4, "lokr": 3, "lokr whole": 2}


def adapted(kind: str, limit: float, strength: float = 0.2):
    """Two layers with a trained network, alpha / rank = 2 where that counts; the second
    changes ten times less."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 24))
    settings = {"linear": 4, **KINDS[kind]}
    settings = NetworkConfig(
        type=kind.split()[0],
        linear_alpha=2.0 * settings["linear"],
        scale_weight_norms=limit,
        **settings,
    )
    network = (
        network_kinds.KINDS[settings.type].load().from_config(settings, ["0", "1"], 1)
    )
    network.attach(model)
    for target, size in (("0", strength), ("1", strength / 10)):
        for name, parameter in network.layer_weights(target).items():
            if name != "dora_scale":
                parameter.data = size * torch.randn(parameter.shape)
    return model, network


@torch.no_grad()
def change(kind: str, model: nn.Sequential, target: int) -> Tensor:
    """The change of a layer's weight, out of its own forward pass (of a DoRA: of its
    low-rank part)."""
    layer = model[target]
    if kind == "dora":
        return layer.scale * layer.lora_B @ layer.lora_A
    eye = torch.eye(layer.base_layer.in_features)
    return (layer(eye) - layer.base_layer(eye)).T


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_above_the_limit_is_scaled_down_to_it_evenly_and_others_stay(
    kind: str,
) -> None:
    model, network = adapted(kind, limit=0.0)
    large, small = (change(kind, model, target) for target in (0, 1))
    limit = 0.5 * float(large.norm())
    assert small.norm() < limit
    model, network = adapted(kind, limit)
    before = {name: p.detach().clone() for name, p in network.parameters().items()}
    numbers = network.after_step(YES)
    torch.testing.assert_close(
        change(kind, model, 0), 0.5 * large, rtol=1e-4, atol=1e-6
    )
    for name, parameter in network.parameters().items():
        moved = name.startswith("0.") and not name.endswith("dora_scale")
        torch.testing.assert_close(
            parameter.data,
            before[name] * (0.5 ** (1 / FACTORS[kind]) if moved else 1.0),
        )
        assert moved or torch.equal(parameter, before[name])
    assert {name: float(value) for name, value in numbers.items()} == {
        "max_norm/keys_scaled": 1,
        "max_norm/average_key_norm": pytest.approx(
            (limit + float(small.norm())) / 2, rel=1e-4
        ),
        "max_norm/max_key_norm": pytest.approx(limit, rel=1e-4),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_step_that_was_not_taken_nothing_is_scaled(kind: str) -> None:
    _, network = adapted(kind, limit=1e-3)
    before = {name: p.detach().clone() for name, p in network.parameters().items()}
    assert network.after_step(NO)["max_norm/keys_scaled"] == 0
    assert all(torch.equal(p, before[name]) for name, p in network.parameters().items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_zero_has_no_norm_and_stays(kind: str) -> None:
    _, network = adapted(kind, limit=1.0, strength=0.0)
    numbers = network.after_step(YES)
    assert [float(value) for value in numbers.values()] == [0, 0, 0]
    assert all(torch.isfinite(p).all() for p in network.parameters().values())


def test_without_a_limit_nothing_is_measured() -> None:
    _, network = adapted("lora", limit=0.0)
    assert network.after_step(YES) == {}


def test_on_a_device_the_host_waits_for_nothing() -> None:
    """A fake CUDA device has no numbers: whoever asks for one fails where a real one
    would make it wait."""
    with FakeTensorMode():
        up_OR, down_RI = (
            torch.empty(5, 2, device="cuda"),
            torch.empty(2, 3, device="cuda"),
        )
        step_ok = torch.empty((), device="cuda") > 0
        numbers = apply_max_norm_(
            [product_norm(up_OR, down_RI)], [[up_OR, down_RI]], 1.0, step_ok
        )
        assert {number.device.type for number in numbers.values()} == {"cuda"}


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_the_norm_of_a_product_without_forming_it(rank: int) -> None:
    up_OR, down_RI = torch.randn(50, rank), torch.randn(rank, 30)
    torch.testing.assert_close(product_norm(up_OR, down_RI), (up_OR @ down_RI).norm())
