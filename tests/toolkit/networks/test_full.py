"""Training the model itself: what is trained, in which dtype, and that nothing else
changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.fsdp  # once, not in each process

from tests.diffusers_reference import open_tiny, relative
from tests.gradients import assert_same_gradients
from tests.processes import in_processes
from toolkit.config.sections.network import NetworkConfig
from toolkit.errors import UserError
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.fsdp import shard_block_fn
from toolkit.memory.offload import BlockSwap
from toolkit.models.qwen_image.family import FAMILY
from toolkit.networks.full import FullNetwork, cast_on_use, modules_with_weights
from toolkit.networks.targets import select_target_modules
from toolkit.system.distributed import ProcessGroup

BF16 = torch.bfloat16


@pytest.fixture
def attached(tiny_model: Path) -> Callable[..., tuple]:
    """The adapter and the attached network of a `network:` section, with float32
    masters unless asked otherwise."""

    def attach(
        dtype=BF16, weights_dtype=torch.float32, modulation_table=False, **section
    ) -> tuple:
        model = open_tiny(
            tiny_model,
            dtype,
            weights_dtype=weights_dtype,
            modulation_table=modulation_table,
        )
        settings = NetworkConfig(type="full", **section)
        targets = select_target_modules(settings, FullNetwork.trainable_modules(model))
        network = FullNetwork.from_config(settings, targets, seed=1, dtype=dtype)
        network.attach(model.network_module)
        return model, network

    return attach


@torch.no_grad()
@pytest.mark.parametrize("weights_dtype", [torch.float32, BF16])
def test_the_output_is_that_of_the_frozen_model_bit_for_bit(
    tiny_model, step_inputs, attached, weights_dtype
) -> None:
    before = open_tiny(tiny_model, BF16).predict_velocity(*step_inputs)
    adapter, network = attached(weights_dtype=weights_dtype)
    assert torch.equal(adapter.predict_velocity(*step_inputs), before)
    assert {p.dtype for p in network.parameters().values()} == {weights_dtype}
    for parameter in network.parameters().values():
        parameter += 0.05 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(1)
        )
    assert relative(adapter.predict_velocity(*step_inputs), before) > 1e-2


def test_every_weight_of_the_model_is_trained_and_the_plan_knows_their_number(
    tiny_model, attached
) -> None:
    adapter, network = attached()
    named = dict(adapter.network_module.named_parameters())
    assert network.parameters().keys() == named.keys()
    assert all(
        network.parameters()[name] is parameter for name, parameter in named.items()
    )
    counted = dict.fromkeys(modules_with_weights(adapter.network_module), 0)
    for name, parameter in named.items():
        counted[name.rpartition(".")[0]] += parameter.numel()
    assert FAMILY.modules(tiny_model) == counted


def test_patterns_choose_modules_with_all_that_is_theirs_and_the_rest_is_frozen(
    attached,
) -> None:
    block = "transformer_blocks.0"
    adapter, network = attached(
        include_patterns=[rf"{block}\.attn\.(to_q|norm_q)", "proj_out"]
    )
    names = [
        f"{block}.attn.norm_q.weight",
        f"{block}.attn.to_q.weight",
        f"{block}.attn.to_q.bias",
    ]
    assert list(network.parameters()) == [*names, "proj_out.weight", "proj_out.bias"]
    for name, parameter in adapter.network_module.named_parameters():
        trained = name in network.parameters()
        assert (parameter.requires_grad, parameter.dtype) == (
            trained,
            torch.float32 if trained else BF16,
        ), name
    _, only = attached(
        network_kwargs={
            "only_if_contains": ["img_mlp"],
            "ignore_if_contains": ["blocks.1"],
        }
    )
    assert set(only.targets) == {
        f"{block}.img_mlp.net.0.proj",
        f"{block}.img_mlp.net.2",
    }


def test_gradients_are_float32_reach_every_weight_and_checkpointing_changes_none(
    step_inputs, attached
) -> None:
    found = []
    for checkpointing in (False, True):
        adapter, network = attached()
        adapter.wrap_blocks([checkpoint_wrapper("full" if checkpointing else "none")])
        adapter.predict_velocity(*step_inputs).square().mean().backward()
        found.append({name: p.grad for name, p in network.parameters().items()})
    assert_same_gradients(*found)
    assert {g.dtype for g in found[0].values() if g is not None} == {torch.float32}


@torch.no_grad()
def test_an_update_below_the_resolution_of_bf16_is_kept(step_inputs, attached) -> None:
    adapter, network = attached()
    parameter = network.parameters()["proj_out.weight"]
    parameter.copy_(parameter.to(BF16))
    before = adapter.predict_velocity(*step_inputs)
    parameter *= 1 + 2**-10
    # not seen yet ...
    assert torch.equal(adapter.predict_velocity(*step_inputs), before)
    for _ in range(3):
        parameter *= 1 + 2**-10
    # ... and not forgotten
    assert relative(adapter.predict_velocity(*step_inputs), before) > 1e-3


def test_the_export_is_the_whole_model_under_its_own_names(attached) -> None:
    adapter, network = attached(include_patterns=["proj_out"], modulation_table=True)
    model = {
        name: tensor.clone()
        for name, tensor in adapter.network_module.state_dict().items()
    }
    # layers that are not trained leave the model
    assert adapter.enable_modulation_cache(BlockSwap) is None
    assert adapter.network_module.state_dict().keys() < model.keys()
    weights = {name: torch.zeros_like(p) for name, p in network.parameters().items()}
    exported = network.export(weights)
    assert exported.keys() == model.keys()
    for name, tensor in exported.items():
        assert torch.equal(tensor, weights.get(name, model[name])), name


# ------------------------------------------------------------ sharded


def test_the_export_has_the_buffers_of_a_file_and_tied_weights_once() -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)
    )
    model[1].weight = model[0].weight
    network = FullNetwork(modules_with_weights(model), torch.float32)
    network.attach(model)
    assert "1.weight" not in network.parameters()
    exported = network.export(network.parameters())
    assert exported.keys() == model.state_dict().keys() - {"1.weight"}


@pytest.mark.slow
def test_a_parameter_of_the_model_itself_keeps_its_name() -> None:
    model = torch.nn.Linear(2, 2)
    network = FullNetwork(modules_with_weights(model), BF16)
    network.attach(model)
    assert list(network.parameters()) == ["weight", "bias"]
    assert network.export({}).keys() == {"weight", "bias"}


def test_rows_of_what_is_shared_out_are_trained_and_exported(
    tiny_model, step_inputs, attached
) -> None:
    """One block is trained, another is not, and what is outside of them is whole.
    Halves of a loss lose no bit."""
    patterns = [r"transformer_blocks\.0\..*", "proj_out"]
    adapter, network = attached(include_patterns=patterns)
    velocity = adapter.predict_velocity(*step_inputs)
    velocity.square().mean().backward()
    whole = network.export(network.parameters())
    gradients = {
        name: parameter.grad for name, parameter in network.parameters().items()
    }

    def rows(tensor: torch.Tensor | None, rank: int) -> torch.Tensor | None:
        return None if tensor is None else tensor.chunk(2)[rank]

    def work(process_group: ProcessGroup) -> str:
        share = shard_block_fn(
            torch.device("cpu"),
            BF16,
            process_group.world_size,
            process_group.run_collective,
        )
        model = open_tiny(
            tiny_model, BF16, weights_dtype=torch.float32, transform_block=share
        )
        settings = NetworkConfig(type="full", include_patterns=patterns)
        own = FullNetwork.from_config(
            settings,
            select_target_modules(settings, FullNetwork.trainable_modules(model)),
            1,
            BF16,
        )
        own.attach(model.network_module)
        found = model.predict_velocity(*step_inputs)
        assert torch.equal(found, velocity)
        (found.square().mean() / 2).backward()
        exported, parts = own.export(own.parameters()), own.sharded_params()
        assert parts.keys() == {
            name for name in whole if name.startswith("transformer_blocks.")
        }
        assert exported.keys() == whole.keys() and list(own.parameters()) == list(
            gradients
        )
        for name, tensor in whole.items():
            here = rows(tensor, process_group.rank) if name in parts else tensor
            assert (
                torch.equal(exported[name], here)
                and exported[name].dtype == tensor.dtype
            ), name
            assert (
                exported[name].untyped_storage().nbytes()
                == here.numel() * here.element_size()
            ), name
        for name, parameter in own.parameters().items():
            expected = (
                rows(gradients[name], process_group.rank)
                if name in parts
                else gradients[name]
            )
            if name not in parts and expected is not None:
                expected = expected / 2  # not summed yet
            assert (parameter.grad is None) == (expected is None), name
            assert expected is None or torch.equal(parameter.grad, expected), name
        return "all as expected"

    assert in_processes(2, work) == ["all as expected"] * 2


def test_a_module_computes_in_another_type_and_stays_what_it_is() -> None:
    layer = torch.nn.Linear(3, 2)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    cast_on_use(layer, BF16)
    x = torch.ones(1, 3, dtype=BF16)
    expected = torch.nn.functional.linear(
        x, state["weight"].to(BF16), state["bias"].to(BF16)
    )
    assert torch.equal(layer(x), expected)
    assert isinstance(layer, torch.nn.Linear) and repr(layer).startswith(
        "Linear(in_features=3"
    )
    assert {
        name: tensor.dtype for name, tensor in layer.state_dict().items()
    } == dict.fromkeys(state, torch.float32)
    layer.load_state_dict({name: tensor + 1 for name, tensor in state.items()})
    assert torch.equal(dict(layer.named_parameters())["bias"], state["bias"] + 1)


def test_a_lora_file_is_no_start(attached) -> None:
    with pytest.raises(UserError, match=r"network\.pretrained_lora_path"):
        attached()[1].load_pretrained({})
