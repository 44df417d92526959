"""The plain LoRA beside a file of another kind: in diffusers it is what it says, as
near as it says."""

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.diffusers_reference import open_tiny, relative
from tests.measured import at_most
from toolkit.config.sections.network import NetworkConfig
from toolkit.contracts import network_kinds as network_kinds
from toolkit.memory.quantization import quantizer
from toolkit.networks import svd as fitting
from toolkit.networks.extract_lora import extract_network_lora
from toolkit.networks.lora_formats import parse_adapter_tensors
from toolkit.networks.save import weights_digest, write_safetensors_verified

KINDS = {
    "loha": {"type": "loha"},
    "lokr": {"type": "lokr"},
    "lokr_whole": {"type": "lokr", "factor": 4, "lokr_full_rank": True},
    "dora": {"type": "dora"},
}


def trained(kind: str, model: nn.Module, targets: list[str]):
    """A network of rank 3 with every matrix somewhere else than at its start."""
    settings = NetworkConfig(**{"linear": 3, "linear_alpha": 1.5, **KINDS[kind]})
    network = (
        network_kinds.KINDS[settings.type].load().from_config(settings, targets, 1)
    )
    network.attach(model)
    random = torch.Generator().manual_seed(5)
    for parameter in network.parameters().values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    return network


def weights_of(network) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in network.parameters().items()}


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 24))


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, "float32") for kind in KINDS),
        *((kind, ("float16", "bfloat16")[i % 2]) for i, kind in enumerate(KINDS)),
    ],
)
def test_diffusers_loads_it_with_the_stated_error(
    pipeline, tiny_model: Path, tmp_path: Path, kind: str, dtype: str
) -> None:
    """A DoRA on an int8 model: its change is that of the weight that training sees."""
    model = open_tiny(
        tiny_model, transform_block=quantizer("int8") if kind == "dora" else None
    )
    targets = list(model.lora_targets())
    network = trained(kind, model.network_module, targets)
    plain = extract_network_lora(network, weights_of(network), 6, dtype)
    path = tmp_path / "x_lora.safetensors"
    write_safetensors_verified(path, plain.tensors, {})
    try:
        pipeline.load_lora_weights(path)
        theirs = {
            name: pipeline.transformer.get_submodule(name).get_delta_weight("default_0")
            for name in targets
        }
    finally:
        pipeline.unload_lora_weights()
    assert plain.errors.keys() == set(targets)
    wrong = 0.0
    for name in targets:
        layer = network.layers[name]
        x = torch.eye(layer.base_layer.in_features)
        trained_OI = (layer(x) - layer.base_layer(x)).T
        real = relative(theirs[name].float(), trained_OI)
        wrong = max(wrong, abs(real / plain.errors[name] - 1))
    at_most(
        f"stated error of {kind} as a LoRA of rank 6 in {dtype}, {plain.worst:.3f} at worst, off by",
        wrong,
        0.02,
    )
    assert plain.worst == max(plain.errors.values()) and plain.worst > 1e-3
    assert plain.mean == pytest.approx(sum(plain.errors.values()) / len(targets))


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "rank"), [("loha", 9), ("lokr", 12), ("lokr_whole", 24), ("dora", 24)]
)
def test_with_enough_rank_nothing_is_lost(kind: str, rank: int) -> None:
    """A LoHa of rank r has rank r * r, a LoKr that of its factors multiplied, a DoRA
    any."""
    model = layers()
    base = [layer.weight.clone() for layer in model]
    network = trained(kind, model, ["0", "1"])
    plain = extract_network_lora(network, weights_of(network), rank, "float32")
    assert plain.worst < 1e-5 and plain.rank == rank
    main = parse_adapter_tensors(
        network.export(weights_of(network)), ["0", "1"], "main"
    )
    for name, change in parse_adapter_tensors(
        plain.tensors, ["0", "1"], "plain"
    ).items():
        assert relative(change.delta(), main[name].delta_for(base[int(name)])) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "least"), [("float16", 1e-4), ("bfloat16", 1e-3)])
def test_the_stated_error_holds_the_rounding_of_the_file(
    dtype: str, least: float
) -> None:
    """Of a LoHa that is held whole it is the only error."""
    network = trained("loha", layers(), ["0", "1"])
    plain = extract_network_lora(network, weights_of(network), 9, dtype)
    main = parse_adapter_tensors(
        network.export(weights_of(network)), ["0", "1"], "main"
    )
    for name, change in parse_adapter_tensors(
        plain.tensors, ["0", "1"], "plain"
    ).items():
        assert relative(change.delta(), main[name].delta()) == pytest.approx(
            plain.errors[name], rel=0.02
        )
        assert plain.errors[name] > least


@torch.no_grad()
@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_before_the_first_step_it_is_a_lora_of_no_effect(kind: str) -> None:
    settings = NetworkConfig(**{"linear": 3, **KINDS[kind]})
    network = (
        network_kinds.KINDS[settings.type].load().from_config(settings, ["0", "1"], 1)
    )
    network.attach(layers())
    plain = extract_network_lora(network, weights_of(network), 4, "float16")
    assert plain.worst == 0
    assert not any(
        c.delta().any()
        for c in parse_adapter_tensors(plain.tensors, ["0", "1"], "plain").values()
    )


@torch.no_grad()
def test_it_is_the_same_each_time_and_draws_nothing_from_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the decomposition is a randomised one, and in a thread of its own."""
    monkeypatch.setattr(fitting, "FULL_SVD_SIDE", 8)
    monkeypatch.setattr(fitting, "OVERSAMPLING", 2)
    network = trained("dora", layers(), ["0", "1"])
    weights = weights_of(network)
    before = torch.get_rng_state()
    digests = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        work = threading.Thread(
            target=lambda: digests.append(
                weights_digest(
                    extract_network_lora(network, weights, 4, "float16").tensors
                )
            )
        )
        state = torch.get_rng_state()
        work.start()
        work.join()
        assert torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(before)
    assert digests[0] == digests[1]
    assert len(digests) == 2
