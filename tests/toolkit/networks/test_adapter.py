"""What every kind of adapter promises: no change at the start, gradients on any base, a
file that means the same."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.diffusers_reference import open_tiny, relative
from tests.gradients import assert_same_gradients
from tests.measured import at_most
from tests.network_files import save_network
from toolkit.config.sections.network import NetworkConfig
from toolkit.contracts import network_kinds as network_kinds
from toolkit.errors import UserError
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.quantization import quantizer
from toolkit.networks.adapter import (
    AdapterDropout,
    LinearAdapterNetwork,
    dequantized_weight,
)
from toolkit.networks.lora_formats import LayerDelta, load_adapter_file

INT8, INT4 = quantizer("int8"), quantizer("int4")
BASES = {"plain": None, "int8": INT8, "int4": INT4}
TO_Q = "transformer_blocks.0.attn.to_q"

KINDS = {
    "lora": {"type": "lora"},
    "dora": {"type": "dora"},
    "loha": {"type": "loha"},
    "lokr": {"type": "lokr"},
    "lokr_factor": {"type": "lokr", "factor": 4},
    "lokr_whole": {"type": "lokr", "factor": 4, "lokr_full_rank": True},
}


@pytest.fixture(params=KINDS)
def settings(request) -> NetworkConfig:
    return configured(request.param)


def configured(kind: str, **more) -> NetworkConfig:
    return NetworkConfig(**{"linear": 3, "linear_alpha": 1.5, **KINDS[kind], **more})


def attached(settings: NetworkConfig, adapter, seed: int = 1) -> LinearAdapterNetwork:
    network = (
        network_kinds.KINDS[settings.type]
        .load()
        .from_config(settings, adapter.lora_targets(), seed)
    )
    network.attach(adapter.network_module)
    return network


def train_somewhat(network: LinearAdapterNetwork, strength: float = 0.05) -> None:
    """Every matrix a little elsewhere than at its start."""
    generator = torch.Generator().manual_seed(11)
    for parameter in network.parameters().values():
        parameter.data += strength * torch.randn(parameter.shape, generator=generator)


# ---------------------------------------------------------------- training


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "base", "dtype"),
    [
        ("lora", "plain", torch.float32),
        ("lora", "int4", torch.bfloat16),
        ("dora", "int8", torch.float32),
        ("dora", "int4", torch.bfloat16),
        ("loha", "int8", torch.float32),
        ("lokr", "int4", torch.bfloat16),
        ("lokr_factor", "plain", torch.float32),
        ("lokr_whole", "int8", torch.float32),
    ],
)
def test_a_new_adapter_changes_nothing(
    tiny_model: Path, step_inputs, kind: str, base: str, dtype
) -> None:
    model = open_tiny(tiny_model, dtype, transform_block=BASES[base])
    before = model.predict_velocity(*step_inputs)
    network = attached(configured(kind), model)
    assert torch.equal(model.predict_velocity(*step_inputs), before)
    train_somewhat(network)
    assert relative(model.predict_velocity(*step_inputs), before) > 1e-3
    assert {p.dtype for p in network.parameters().values()} == {torch.float32}


def test_gradients_reach_every_matrix_and_checkpointing_changes_none(
    tiny_model, step_inputs, settings
) -> None:
    found = []
    model = open_tiny(tiny_model, transform_block=INT8)
    network = attached(settings, model)
    train_somewhat(network)
    trainable = {id(p) for p in model.network_module.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in network.parameters().values()}
    for level in ("none", "full"):
        model.wrap_blocks([checkpoint_wrapper(level)])
        model.predict_velocity(*step_inputs).square().mean().backward()
        found.append({name: p.grad for name, p in network.parameters().items()})
        for parameter in network.parameters().values():
            parameter.grad = None
    assert_same_gradients(*found)


def layers(*names: str) -> torch.nn.Sequential:
    """A model of layers of 24 inputs and 40 outputs."""
    model = torch.nn.Sequential()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in names:
            model.add_module(name, torch.nn.Linear(24, 40))
    return model


def single(
    settings: NetworkConfig,
) -> tuple[Callable[[], torch.nn.Module], LinearAdapterNetwork]:
    """The layer of a model of one, and its network."""
    model = layers("layer")
    network = (
        network_kinds.KINDS[settings.type]
        .load()
        .from_config(settings, ["layer"], seed=1)
    )
    network.attach(model)
    return (lambda: model.layer), network


def test_the_start_depends_on_the_seed_and_the_layer_alone(settings) -> None:
    def start(seed: int, before: int, *names: str) -> dict[str, Tensor]:
        model = layers("a", "b")
        torch.manual_seed(before)
        state = torch.get_rng_state()
        network = (
            network_kinds.KINDS[settings.type].load().from_config(settings, names, seed)
        )
        network.attach(model)
        assert torch.equal(torch.get_rng_state(), state)
        return network.parameters()

    first, second, other = (
        start(5, 1, "a", "b"),
        start(5, 2, "a", "b"),
        start(6, 1, "a", "b"),
    )
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    same = {name for name in first if torch.equal(first[name], other[name])}
    assert same == {
        name for name in first if not first[name].any() or name.endswith("dora_scale")
    }
    assert len(same) == 2 * (2 if settings.type == "dora" else 1)
    if settings.type != "lora":  # peft draws one layer after the other
        alone = start(5, 1, "b")
        assert alone.keys() == {name for name in first if name.startswith("b.")}
        assert all(torch.equal(alone[name], first[name]) for name in alone)


@torch.no_grad()
@pytest.mark.parametrize("which", ["dropout", "rank_dropout", "module_dropout"])
def test_dropout_is_active_in_training_and_off_for_samples(
    settings, which: str
) -> None:
    x = torch.randn(4, 5, 24, generator=torch.Generator().manual_seed(3))
    plain_layer, plain_network = single(settings)
    train_somewhat(plain_network)
    plain = plain_layer()(x)
    layer, network = single(settings.model_copy(update={which: 0.5}))
    train_somewhat(network)
    torch.manual_seed(0)
    seen = [layer()(x) for _ in range(60)]
    assert any(not torch.equal(seen[0], other) for other in seen[1:])
    torch.manual_seed(0)
    assert torch.equal(layer()(x), seen[0])
    base = layer().base_layer(x)
    # of a dropped module the rest is not enlarged
    share = {"module_dropout": 0.5}.get(which, 1.0)
    assert relative(torch.stack(seen).mean(0) - base, share * (plain - base)) < 0.6
    with network.inference():
        assert torch.equal(layer()(x), plain)
    with pytest.raises(KeyError), network.inference():
        raise KeyError
    # on again after an error too
    assert any(not torch.equal(layer()(x), plain) for _ in range(20))


# ---------------------------------------------------------------- the file


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "base"),
    [(kind, "int8") for kind in KINDS] + [("lora", "plain"), ("dora", "plain")],
)
def test_the_file_makes_the_weight_that_was_trained(
    tiny_model, tmp_path, kind: str, base: str
) -> None:
    """Layer by layer: inputs through the trained layer, and through the frozen weight
    with the file's change."""
    model = open_tiny(tiny_model, transform_block=BASES[base])
    targets = model.lora_targets()
    frozen = {name: model.network_module.get_submodule(name) for name in targets}
    network = attached(settings := configured(kind), model)
    train_somewhat(network)
    path = tmp_path / "network.safetensors"
    save_network(path, network.export(network.parameters()), "float32", {})
    changes = load_adapter_file(path, targets)
    assert changes.keys() == set(targets)
    worst = 0.0
    for name in targets:
        weight_OI = dequantized_weight(frozen[name])
        change_OI = changes[name].applied_to(weight_OI) - weight_OI
        x = torch.eye(weight_OI.shape[1])[None]
        trained_IO = model.network_module.get_submodule(name)(x)[0] - frozen[name](x)[0]
        worst = max(worst, relative(trained_IO.T, change_OI))
        assert change_OI.norm() > 1e-3 * weight_OI.norm()
    at_most(
        f"{settings.type} {settings.size()} file on {base}, change of a weight",
        worst,
        1e-5,
    )


def test_the_file_has_the_names_that_comfyui_reads(settings) -> None:
    _, network = single(settings)
    exported = network.export(network.parameters())
    assert exported.keys() == {
        f"diffusion_model.layer.{part}"
        for part in (*network.layer_weights("layer"), "alpha")
    }
    # LoKr with two whole factors is not scaled; the rank as alpha says so to readers
    # that divide all the same.
    assert float(exported["diffusion_model.layer.alpha"]) == (
        3.0 if settings.lokr_full_rank else 1.5
    )


@torch.no_grad()
def test_a_file_can_be_gone_on_from_in_its_own_kind(
    said: list[str], tmp_path: Path, settings
) -> None:
    """Also with another alpha."""
    layer, first = single(settings)
    train_somewhat(first)
    changes = saved(first, tmp_path)
    after, second = single(settings.model_copy(update={"linear_alpha": 4.0}))
    train_somewhat(second)
    second.load_pretrained(changes)
    assert said == ["started from 1 layers of the given file"]
    x = torch.eye(24)[None]
    assert relative(after()(x), layer()(x)) < 1e-6


def saved(network: LinearAdapterNetwork, folder: Path) -> dict[str, LayerDelta]:
    """What the file of a network on one layer says."""
    path = folder / "network.safetensors"
    save_network(path, network.export(network.parameters()), "float32", {})
    return load_adapter_file(path, ["layer"])


def test_an_adapter_without_effect_cannot_take_over_a_file(
    settings, tmp_path: Path
) -> None:
    _, network = single(settings.model_copy(update={"linear_alpha": 0.0}))
    with pytest.raises(UserError, match="linear_alpha: 0 cannot take over"):
        network.load_pretrained(saved(single(settings)[1], tmp_path))


@torch.no_grad()
def test_alpha_zero_is_no_effect_in_training_and_in_the_file(
    settings, tmp_path: Path
) -> None:
    layer, network = single(settings.model_copy(update={"linear_alpha": 0.0}))
    x = torch.randn(2, 24)
    with torch.enable_grad():
        layer()(x).square().sum().backward()
    for name, p in network.parameters().items():
        if not name.endswith("dora_scale") and p.grad is not None:
            p -= p.grad
    assert torch.equal(layer()(x), layer().base_layer(x))
    assert not saved(network, tmp_path)["layer"].delta().any()


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "of", "words"),
    [
        ("lora", "dora", "the file is a DoRA. Set network.type to dora"),
        ("loha", "lora", "a LoHa can only start from a LoHa file"),
        (
            "loha",
            "loha_large",
            "has rank 5, which a LoHa cannot be cut from. Set network.linear to 5",
        ),
        ("lokr", "loha", "a LoKr can only start from a LoKr file"),
        (
            "lokr",
            "lokr_factor",
            "layer has the factors .* in the file and .* here. Give network.linear, factor",
        ),
    ],
)
def test_a_file_that_a_kind_cannot_hold_is_refused_with_the_reason(
    tmp_path: Path, kind, of, words: str
) -> None:
    given = configured("loha", linear=5) if of == "loha_large" else configured(of)
    with pytest.raises(UserError, match=words):
        single(configured(kind))[1].load_pretrained(saved(single(given)[1], tmp_path))
    single(given)[1].load_pretrained(saved(single(given)[1], tmp_path))


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "of", "rank"),
    [("dora", "lora", 5), ("lora", "loha", 9), ("loha", "loha", 5)],
)
def test_a_file_of_less_or_of_another_kind_is_held_whole(
    tmp_path: Path, kind: str, of: str, rank: int
) -> None:
    """A DoRA that starts from a LoRA has the norm of W + d: it is that LoRA. A LoHa of
    rank 3 is a LoRA of rank 9."""
    layer, first = single(configured(of))
    train_somewhat(first)
    after, second = single(configured(kind, linear=rank))
    second.load_pretrained(saved(first, tmp_path))
    x = torch.eye(24)[None]
    assert relative(after()(x), layer()(x)) < 1e-5
    train_somewhat(second)
    assert relative(after()(x), layer()(x)) > 1e-3


@torch.no_grad()
def test_a_dora_that_scales_output_rows_is_read_but_not_taken_over() -> None:
    layer, network = single(configured("dora"))
    generator = torch.Generator().manual_seed(0)
    parts = {
        name: torch.randn(shape, generator=generator)
        for name, shape in (("up", (40, 3)), ("down", (3, 24)))
    }
    rows = LayerDelta({**parts, "dora_scale": torch.ones(40, 1)}, 0.5)
    torch.testing.assert_close(
        rows.applied_to(layer().base_layer.weight).norm(dim=1), torch.ones(40)
    )
    with pytest.raises(UserError, match="scales output rows"):
        network.load_pretrained({"layer": rows})


OF_BIASES = LayerDelta(
    {"up": torch.ones(6, 1), "down": torch.ones(1, 4)}, 1.0, torch.ones(6)
)
OFT = LayerDelta(
    {"rotation_of_outputs": torch.eye(4).expand(1, 10, 4, 4)}, 1.0, size=(40, 24)
)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "lora",
            OF_BIASES,
            r"changes biases \(layer\), which a network does not train",
        ),
        *(
            (
                kind,
                OFT,
                r"an OFT \(layer\), which no network here trains.*model.base_loras",
            )
            for kind in ("lora", "dora", "loha", "lokr")
        ),
    ],
)
def test_a_file_of_what_no_network_trains_cannot_be_taken_over(
    kind: str, change: LayerDelta, message: str
) -> None:
    network = single(configured(kind))[1]
    with pytest.raises(UserError, match=message):
        network.load_pretrained({"layer": change})


# ---------------------------------------------------------------- diffusers


@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr_whole"])
def test_diffusers_refuses_what_it_does_not_know(
    pipeline, tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    network = attached(configured(kind), open_tiny(tiny_model))
    path = tmp_path / "network.safetensors"
    save_network(path, network.export(network.parameters()), "float32", {})
    with pytest.raises(ValueError, match=r"state_dict.* should be empty"):
        pipeline.load_lora_weights(path)


def test_diffusers_takes_a_dora_without_its_magnitude(
    pipeline, tiny_model: Path, tmp_path: Path
) -> None:
    network = attached(configured("dora"), open_tiny(tiny_model))
    train_somewhat(network)
    path = tmp_path / "network.safetensors"
    save_network(path, network.export(network.parameters()), "float32", {})
    try:
        pipeline.load_lora_weights(path)
        delta_OI = pipeline.transformer.get_submodule(TO_Q).get_delta_weight(
            "default_0"
        )
    finally:
        pipeline.unload_lora_weights()
    torch.testing.assert_close(
        delta_OI, load_adapter_file(path, network.targets)[TO_Q].delta()
    )


# ------------------------------------------------------------ dropout


def test_whole_ranks_of_a_sample_are_left_out_and_the_rest_is_enlarged() -> None:
    torch.manual_seed(0)
    seen = AdapterDropout(ranks=0.25).train().ranks(torch.ones(50, 7, 40))
    assert torch.equal(seen, seen[:, :1].expand_as(seen))  # alike for all tokens
    torch.testing.assert_close(seen.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert abs(float((seen == 0).float().mean()) - 0.25) < 0.03
    assert AdapterDropout(ranks=0.25).train().ranks(torch.ones(2, 8)).shape == (2, 8)


def test_a_module_is_left_out_whole_and_not_made_up_for() -> None:
    torch.manual_seed(0)
    thinning = AdapterDropout(module=0.25).train()
    seen = torch.stack([thinning.module(torch.ones(2, 3)) for _ in range(800)])
    assert torch.equal(seen, seen[:, :1, :1].expand_as(seen))
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    assert abs(float(seen.mean()) - 0.75) < 0.05


def test_zero_draws_nothing_and_evaluation_leaves_all_in() -> None:
    x, state = torch.ones(2, 3), torch.get_rng_state()
    for thinning in (AdapterDropout().train(), AdapterDropout(0.5, 0.5, 0.5).eval()):
        assert thinning.module(thinning.ranks(thinning.inputs(x))) is x
    assert torch.equal(torch.get_rng_state(), state)
