"""The table of kinds: the sizes of all matrices against LyCORIS where it has the kind,
and whole jobs of each."""

from collections import OrderedDict
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from lycoris.functional.general import factorization
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from safetensors import safe_open
from safetensors.torch import load_file

from tests.network_files import same_tensors, save_network
from toolkit.config.sections.network import NetworkConfig
from toolkit.contracts.network import Network
from toolkit.contracts.network_kinds import (
    KINDS,
    NetworkKind,
    factorize,
    loha_shapes,
    lokr_shapes,
)
from toolkit.networks.lora import LoraNetwork
from toolkit.networks.lora_formats import load_adapter_file, own_names


def test_a_size_is_factorised_as_lycoris_does() -> None:
    for factor in (-1, 1, 2, 3, 4, 7, 8, 16, 48, 100):
        for size in [*range(1, 130), 256, 384, 3072, 3584, 12288, 18432]:
            assert factorize(size, factor) == factorization(size, factor), size


@pytest.mark.parametrize(
    ("inputs", "outputs"), [(64, 64), (64, 384), (256, 64), (30, 42)]
)
@pytest.mark.parametrize(
    ("rank", "factor", "whole"),
    [(1, -1, False), (4, -1, False), (4, 4, False), (2, 8, True)],
)
def test_the_matrices_are_those_of_lycoris(
    inputs: int, outputs: int, rank: int, factor: int, whole: bool
) -> None:
    layer = torch.nn.Linear(inputs, outputs)
    lokr = LokrModule("x", layer, lora_dim=rank, factor=factor, full_matrix=whole)
    loha = LohaModule("x", layer, lora_dim=rank)
    ours = (
        lokr_shapes(inputs, outputs, rank, factor, whole),
        loha_shapes(inputs, outputs, rank),
    )
    for shapes, theirs in zip(ours, (lokr, loha), strict=True):
        assert shapes == {
            name: tuple(p.shape)
            for name, p in theirs.named_parameters()
            if "org" not in name
        }


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"type": "lora"}, 4 * (64 + 256)),
        ({"type": "dora"}, 4 * (64 + 256) + 64),
        ({"type": "loha"}, 2 * 4 * (64 + 256)),
        ({"type": "lokr", "factor": 4}, 4 * 4 + 4 * (16 + 64)),
        ({"type": "lokr", "factor": 4, "lokr_full_rank": True}, 4 * 4 + 16 * 64),
        ({"type": "lokr"}, 16 * 8 + 4 * (16 + 8)),
        (
            {"type": "lokr", "linear": 8},
            16 * 8 + 16 * 8,
        ),  # a rank of half of 16 saves nothing
    ],
)
def test_the_weights_of_a_layer_are_counted(settings: dict, weights: int) -> None:
    """On 64 inputs (in balance 8 x 8) and 256 outputs (16 x 16)."""
    section = NetworkConfig(**{"linear": 4, **settings})
    assert (
        sum(map(prod, KINDS[settings["type"]].layer_shapes(section, 64, 256).values()))
        == weights
    )


# ------------------------------------------------------------ what every kind promises


OWN = [name for name, kind in KINDS.items() if not kind.library_class]
"""Those of LyCORIS's modules have tests of their own: test_lycoris_library.py."""


FROZEN = replace(
    KINDS["lora"],
    network_class=f"{__name__}:UpOnly",
    frozen_names=frozenset({"lora_A.weight"}),
)
"""A kind that trains only one of its matrices."""


class UpOnly(LoraNetwork):
    kind = FROZEN


@pytest.fixture(params=[*KINDS, "up_only"])
def kind(request: pytest.FixtureRequest) -> NetworkKind:
    return KINDS.get(request.param, FROZEN)


def made(kind: NetworkKind, base: torch.nn.Module) -> Network:
    """A network of this kind on both layers of `toy`."""
    name = next((name for name, entry in KINDS.items() if entry is kind), "lora")
    network = kind.load().from_config(
        NetworkConfig(type=name, linear=3), ["first", "second"], 1, torch.float32
    )
    network.attach(base)
    return network


def toy() -> torch.nn.Module:
    torch.manual_seed(5)
    return torch.nn.Sequential(
        OrderedDict(first=torch.nn.Linear(12, 16), second=torch.nn.Linear(16, 8))
    )


X = torch.linspace(-1, 1, 24).view(2, 12)


def test_a_new_network_is_a_no_op_and_its_gradients_reach_every_layer(
    kind: NetworkKind,
) -> None:
    base = toy()
    before = base(X).detach()
    network = made(kind, base)
    after = base(X)
    torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-6)
    after.square().sum().backward()
    learning = {
        name.partition(".")[0]
        for name, p in network.parameters().items()
        if p.grad is not None and p.grad.any()
    }
    assert learning == {"first", "second"}
    trained = {id(p) for p in network.parameters().values()}
    assert all(id(p) in trained for p in base.parameters() if p.requires_grad)
    assert network.lora_b_parameters() <= network.parameters().keys()
    assert bool(network.lora_b_parameters()) == bool(kind.up_names)


def test_the_table_counts_what_the_class_trains(kind: NetworkKind) -> None:
    network = made(kind, toy())
    trained, frozen = (
        {
            f"{target}.{name}": shape
            for target, size in (("first", (12, 16)), ("second", (16, 8)))
            for name, shape in kind.layer_shapes(
                NetworkConfig(type="lora", linear=3), *size, frozen
            ).items()
        }
        for frozen in (False, True)
    )
    own = {name: tuple(p.shape) for name, p in network.parameters().items()}
    assert kind.trains_model == (not trained)
    assert kind.trains_model or trained == own
    buffers = network.buffers()
    assert frozen == {name: tuple(buffer.shape) for name, buffer in buffers.items()}
    assert bool(frozen) == bool(kind.frozen_names)
    layers = getattr(network, "layers", {})
    assert all(layer.needs_base == kind.needs_base for layer in layers.values())


@pytest.mark.parametrize("kind", [*OWN, "up_only"], indirect=True)
def test_what_is_exported_is_read_back_as_the_same_change(
    kind: NetworkKind, tmp_path: Path
) -> None:
    base, plain = toy(), toy()
    network = made(kind, base)
    with torch.no_grad():
        for parameter in network.parameters().values():
            parameter += 0.05
    tensors = network.export(
        {name: p.detach() for name, p in network.parameters().items()}
    )
    save_network(tmp_path / "x.safetensors", tensors, "float32", {})
    if kind.trains_model:
        plain.load_state_dict(load_file(tmp_path / "x.safetensors"))
    else:
        for name, change in load_adapter_file(
            tmp_path / "x.safetensors", {"first": (12, 16), "second": (16, 8)}
        ).items():
            layer = plain.get_submodule(name)
            layer.weight.data = change.applied_to(layer.weight.data)
    with torch.no_grad():
        torch.testing.assert_close(plain(X), base(X), atol=1e-4, rtol=1e-4)


def test_every_kind_has_units_for_the_plan(kind: NetworkKind) -> None:
    units = kind.units
    pairs = zip(units.everything, units.matmul_outputs, strict=True)
    assert all(everything > costly > 0 for everything, costly in pairs)
    assert min(*units.backward, *units.forward) > 0


@pytest.mark.slow
def test_a_job_stops_goes_on_and_leaves_a_file_that_is_read_back(
    parts_and_whole,
) -> None:
    """A job of each kind: tests/extensions/sd_trainer/test_matrix.py."""
    network = {"type": "dora", "linear": 3, "linear_alpha": 1.5}
    parts, whole, printed = parts_and_whole(network)
    assert "dora rank 3, alpha 1.5 on 24 layers: " in printed
    stored = load_file(whole)
    assert same_tensors(parts, whole)
    with safe_open(whole, framework="pt") as file:
        assert file.metadata()["network_type"] == "dora"
    modules = set(own_names(stored))
    assert len(modules) == 24  # two blocks of 14 layers, less the modulations
    changes = load_adapter_file(whole, modules)
    assert any(change.delta().any() for change in changes.values())
