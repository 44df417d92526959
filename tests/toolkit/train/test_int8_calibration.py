"""The choice of int8 products follows from the model and the data alone, and changes nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tests.diffusers_reference import CPU, REFERENCES, encode_photos, open_tiny, photo_item, relative
from toolkit.config.sections.train import CompileConfig
from toolkit.contracts.data import BatchSpec, Size
from toolkit.data.batches.dataloader import BatchLoader, LatentBatch
from toolkit.data.batches.epoch_order import epoch_batches, epoch_order
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.compiling import compile_wrapper
from toolkit.memory.int8_calibration import candidates, int8_layers
from toolkit.memory.offload import BlockSwap
from toolkit.memory.quantization import Int8Matmuls, quantizer
from toolkit.networks.lora import LoraNetwork
from toolkit.train.int8_calibration import LEVELS, calibrate_int8, first_sample_spec

BOTH = Int8Matmuls(forward=True, backward=True)
NOISE = torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(5))


def opened(folder: Path, learned: float = 0.0, **options):
    """An adapter on int8 weights with a LoRA that has learned something."""
    model = open_tiny(folder, transform_block=quantizer("int8"), reference_area=0, **options)
    network = LoraNetwork(model.lora_targets(), 4, 4.0, dropout=0.1, seed=1)
    network.attach(model.network_module)
    network.fuse_projections(model.fused_projection_groups())
    random = torch.Generator().manual_seed(2)
    for parameter in network.parameters().values():
        parameter.data += learned * torch.randn(parameter.shape, generator=random)
    assert model.enable_modulation_cache(BlockSwap) is None
    return model, network


@pytest.fixture(scope="module")
def batch(tiny_model: Path) -> LatentBatch:
    dataset = encode_photos(open_tiny(tiny_model, reference_area=0), photo_item(Size(64, 64), REFERENCES[:1]))
    return BatchLoader(dataset, seed=1).load(BatchSpec(0, (0,), (0,)))


def chosen(adapter, network, batch: LatentBatch, **how) -> list[dict[str, float]]:
    layers = candidates(adapter.network_module, True, CPU)
    return calibrate_int8(adapter, network, layers, batch, NOISE, **how)


def test_layers_of_many_rows_are_seen_both_ways_where_gradients_get(tiny_model: Path, batch: LatentBatch) -> None:
    adapter, network = opened(tiny_model)
    errors = chosen(adapter, network, batch)
    choice = [layer.in_int8 for layer in int8_layers(adapter.network_module)]
    # 2 x 14 layers: four see the noise level alone; what the last block makes of the text goes nowhere, and the text's
    # query, key and value of the first block read what needs no gradient.
    assert [len(choice), choice.count(BOTH), choice.count(Int8Matmuls())] == [28, 18, 4]
    assert all(0 < value < 0.03 for error in errors for value in error.values() if value)


@pytest.mark.parametrize("table", [False, True], ids=["", "table"])
def test_what_was_learned_changes_nothing(tiny_model: Path, batch: LatentBatch, table: bool) -> None:
    new, learned = (chosen(*opened(tiny_model, learned, modulation_table=table), batch) for learned in (0.0, 0.3))
    assert new == learned


def test_it_leaves_nothing_behind_but_the_choice(tiny_model: Path, batch: LatentBatch) -> None:
    adapter, network = opened(tiny_model, 0.3)
    t = torch.tensor([0.5])
    with network.inference(), torch.no_grad():
        before = adapter.predict_velocity(NOISE, t, batch.prompts, batch.control_latents)
    state = torch.get_rng_state()
    weights = {name: p.detach().clone() for name, p in network.parameters().items()}
    chosen(adapter, network, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and torch.equal(p, weights[name]) for name, p in network.parameters().items())
    for layer in int8_layers(adapter.network_module):
        layer.in_int8 = Int8Matmuls()
    with network.inference(), torch.no_grad():
        assert torch.equal(adapter.predict_velocity(NOISE, t, batch.prompts, batch.control_latents), before)


def test_each_noise_level_counts(tiny_model: Path, batch: LatentBatch, monkeypatch) -> None:
    from toolkit.train import int8_calibration

    together = chosen(*opened(tiny_model), batch)
    alone = []
    for level in LEVELS:
        monkeypatch.setattr(int8_calibration, "LEVELS", (level,))
        alone.append(chosen(*opened(tiny_model), batch))
    for error, *others in zip(together, *alone, strict=True):
        assert error == {way: max(other[way] for other in others) for way in error}
    assert len({str(errors) for errors in alone}) == len(LEVELS)


def test_checkpointing_and_compiling_change_no_error(tiny_model: Path, batch: LatentBatch) -> None:
    expected = chosen(*opened(tiny_model), batch)
    adapter, network = opened(tiny_model)
    adapter.wrap_blocks(
        [checkpoint_wrapper("full"), compile_wrapper(CompileConfig(enabled=True, backend="eager", fullgraph=True))]
    )
    before = counters["stats"]["unique_graphs"]
    found = chosen(adapter, network, batch)
    # Compiled, the inputs of the first block have a gradient too.
    assert [{way: error[way] for way in known} for error, known in zip(found, expected, strict=True)] == expected
    assert sum(map(len, found)) > sum(map(len, expected))
    assert counters["stats"]["unique_graphs"] == before  # that would be programs for these passes alone


def test_all_processes_do_as_the_first(tiny_model: Path, batch: LatentBatch) -> None:
    adapter, network = opened(tiny_model)
    refused = {"forward": 0.5, "backward": 0.5}
    chosen(adapter, network, batch, from_first=lambda make: [refused for _ in make()])
    assert {layer.in_int8 for layer in int8_layers(adapter.network_module)} == {Int8Matmuls()}


def test_blocks_that_are_compiled_are_made_alike(tiny_model: Path, batch: LatentBatch, monkeypatch) -> None:
    monkeypatch.setattr("toolkit.memory.int8_calibration.MOST_PATTERNS", 1)
    adapter, network = opened(tiny_model)
    chosen(adapter, network, batch, compiled=True)
    first, last = ([layer.in_int8 for layer in int8_layers(block)] for block in adapter.blocks())
    assert first == last and first.count(BOTH) == 12  # what one does not make goes by the other


def test_the_first_use_is_that_of_the_order_whatever_the_batch_size(make_items) -> None:
    items = make_items(Size(64, 64), Size(96, 64), Size(64, 64), Size(96, 64), Size(64, 96))
    for seed in range(5):
        found = {first_sample_spec(epoch_batches(items, size, seed, 0)) for size in (1, 2, 3)}
        assert found == {BatchSpec(0, (epoch_order(items, seed, 0)[0],), (0,))}


@pytest.fixture
def make_items():
    def make(*buckets: Size):
        return [photo_item(bucket) for bucket in buckets]

    return make


@torch.no_grad()
def test_the_network_is_really_left_out(tiny_model: Path, batch: LatentBatch) -> None:
    adapter, network = opened(tiny_model, 0.3)
    alone = open_tiny(tiny_model, transform_block=quantizer("int8"), reference_area=0)
    inputs: tuple[Tensor, ...] = (NOISE, torch.tensor([0.5]), batch.prompts, batch.control_latents)
    expected = alone.predict_velocity(*inputs)
    with network.disabled():
        assert torch.equal(adapter.predict_velocity(*inputs), expected)
    assert relative(adapter.predict_velocity(*inputs), expected) > 1e-3
