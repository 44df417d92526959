"""The LoRA's own: its scale, its file in diffusers' loader, layers that read the same
input. What it shares with the other kinds is in test_adapter.py."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.diffusers_reference import (
    MEMBERS,
    REFERENCES,
    Member,
    drawn_by_pipeline,
    load_without_a_word,
    memory_stores,
    open_tiny,
    psnr,
    relative,
)
from tests.measured import at_least, at_most
from tests.network_files import save_network
from toolkit.contracts.data import Size
from toolkit.contracts.model import project
from toolkit.data.batches.latent_cache import ItemEncoder
from toolkit.models.qwen_image.model import QwenImageModel
from toolkit.networks.lora import LoraNetwork
from toolkit.train.sampling import SamplePrompt, Sampler

SIZE = Size(96, 64)


def lora(
    model: QwenImageModel,
    rank: int = 4,
    alpha: float = 4.0,
    dropout: float = 0.0,
    **options,
):
    network = LoraNetwork(
        options.get("targets", model.lora_targets()), rank, alpha, dropout, seed=1
    )
    network.attach(model.network_module)
    return network


def train_somewhat(network: LoraNetwork, strength: float = 0.05) -> None:
    """Up matrices as training could have made them."""
    generator = torch.Generator().manual_seed(11)
    for name, parameter in network.parameters().items():
        if "lora_B" in name:
            parameter.data.copy_(
                strength * torch.randn(parameter.shape, generator=generator)
            )


@pytest.fixture
def loaded(pipeline, caplog: pytest.LogCaptureFixture):
    """Loads a LoRA file into the pipeline by its own loader, which must not complain;
    takes it out afterwards."""

    def load(path: Path):
        load_without_a_word(pipeline, path, caplog)
        return pipeline

    yield load
    pipeline.unload_lora_weights()


FILES = [
    ("float32", 4, 4.0, 1e-4),
    ("float32", 6, 4.5, 1e-4),
    ("float16", 4, 2.0, 1e-4),
    ("bfloat16", 4, 16.0, 1e-4),
    ("float16", 6, 4.5, 1e-3),
    ("bfloat16", 6, 4.5, 5e-3),
]


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "rank", "alpha", "limit"), FILES)
def test_the_file_in_diffusers_equals_the_trained_adapter(
    loaded,
    tiny_model: Path,
    step_inputs,
    tmp_path: Path,
    dtype: str,
    rank: int,
    alpha: float,
    limit: float,
) -> None:
    """Relative to the change that the LoRA makes. Ours holds the file's weights,
    rounded to its dtype."""
    model = open_tiny(tiny_model)
    base = model.predict_velocity(*step_inputs)
    network = lora(model, rank, alpha)
    train_somewhat(network)
    path = tmp_path / "lora.safetensors"
    save_network(path, network.export(network.parameters()), dtype, {"rank": str(rank)})
    for parameter in network.parameters().values():
        parameter.data = parameter.data.to(getattr(torch, dtype)).float()
    ours = model.predict_velocity(*step_inputs)

    pipeline = loaded(path)
    theirs_adapter = open_tiny(tiny_model)
    theirs_adapter._parts["transformer"] = pipeline.transformer
    theirs = theirs_adapter.predict_velocity(*step_inputs)
    assert relative(theirs, base) > 1e-3
    at_most(
        f"LoRA file {dtype}, rank {rank}, alpha {alpha:g}",
        relative(ours - base, theirs - base),
        limit,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMBERS)
def test_each_members_pipeline_draws_with_its_file(
    member: Callable[[str], Member],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    model, pipeline = (
        member(name).open(monkeypatch, SIZE.width * SIZE.height),
        member(name).pipeline,
    )
    references = REFERENCES[: model.family.max_references]
    prompt = SamplePrompt(
        "a cat",
        "blurry",
        SIZE,
        seed=4,
        guidance_scale=3.0,
        steps=4,
        references=references,
    )
    sampler = Sampler(
        model, [prompt], ItemEncoder(model, torch.float32), memory_stores()
    )
    without = sampler.generate(0)
    network = lora(model, rank=4, alpha=6.0)
    train_somewhat(network, strength=1.0)
    save_network(
        tmp_path / "lora.safetensors",
        network.export(network.parameters()),
        "float32",
        {},
    )
    pipeline.load_lora_weights(tmp_path / "lora.safetensors")
    try:
        theirs = drawn_by_pipeline(pipeline, prompt)
    finally:
        pipeline.unload_lora_weights()
    with network.inference():
        ours = sampler.generate(0)
    assert psnr(ours, without) < 45, "the LoRA must be seen in the image"
    at_least(f"{name}: sample with a LoRA, dB", psnr(ours, theirs), 60)


# ---------------------------------------------------------------- layers that read the
# same input


def three_layers(
    shared: bool,
    rank_dropout: float = 0.0,
    dropout: float = 0.0,
    adapted: Sequence[str] = "qkv",
):
    """Query, key and value on one input; with `shared` they know of each other."""
    torch.manual_seed(3)
    model = torch.nn.ModuleDict({name: torch.nn.Linear(16, 24) for name in "qkv"})
    network = LoraNetwork(list(adapted), 4, 8.0, dropout, 1, rank_dropout)
    network.attach(model)
    train_somewhat(network, strength=1.0)
    if shared:
        network.fuse_projections(["qkv"])
    return model, network


def outputs_and_gradients(model, network, x):
    x = x.clone().requires_grad_(True)
    torch.manual_seed(5)
    outputs = project(list(model.values()), x)
    sum(output.square().sum() for output in outputs).backward()
    return outputs, [
        x.grad,
        *(p.grad for p in network.parameters().values() if p.grad is not None),
    ]


@pytest.mark.parametrize("rank_dropout", [0.0, 0.5])
@pytest.mark.parametrize("adapted", ["qkv", "qv", "kv", "k"])
def test_one_product_for_all_gives_what_each_gives_alone(
    adapted: str, rank_dropout: float
) -> None:
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    alone, shared = (
        outputs_and_gradients(*three_layers(shared, rank_dropout, adapted=adapted), x)
        for shared in (False, True)
    )
    torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-4)


def test_the_down_matrices_are_applied_in_one_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, network = three_layers(shared=True)
    rows = []

    def linear(x: Tensor, weight: Tensor) -> Tensor:
        rows.append(len(weight))
        return torch.nn.functional.linear(x, weight)

    monkeypatch.setattr("toolkit.networks.lora.linear", linear)
    outputs_and_gradients(model, network, torch.ones(2, 16))
    assert rows == [3 * 4]
    with network.disabled(), torch.no_grad():
        project(list(model.values()), torch.ones(2, 16))
    assert rows == [3 * 4]


def test_with_dropout_each_layer_leaves_out_inputs_of_its_own() -> None:
    model, network = three_layers(shared=True, dropout=0.5)
    for name in ("k", "v"):
        for part, own in network.layer_weights("q").items():
            network.layer_weight(name, part).data.copy_(own.data)
    x = torch.ones(1, 16)
    outputs = project(list(model.values()), x)
    changes = [
        out - model[name].base_layer(x)
        for name, out in zip(model, outputs, strict=True)
    ]
    assert not torch.allclose(changes[0], changes[1]) and not torch.allclose(
        changes[1], changes[2]
    )
