"""The modulation from a table against the modulation as the model computes it."""

from pathlib import Path

import pytest
import torch

from tests.diffusers_reference import CPU, open_tiny, relative, step_of_photo
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.offload import BlockSwap
from toolkit.memory.quantization import quantizer
from toolkit.models.qwen_image.modulation_cache import MOST_ROWS, ModulationCache
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.networks.lora import DoraNetwork, LoraNetwork
from toolkit.networks.lycoris import LohaNetwork

LEVELS = [0.8125, 0.3, 0.3]


@pytest.fixture(scope="module")
def step(tiny_model: Path):
    """x_t, t, prompts and references of three items with one reference."""
    return step_of_photo(tiny_model, LEVELS)


def trained(folder: Path, kind: type | None, table: bool, **options):
    """An adapter with a network that has learned something, and with a table or
    without."""
    model = open_tiny(folder, modulation_table=table, **options)
    parameters = {}
    if kind:
        network = kind(model.lora_targets(), 4, 4.0, dropout=0.0, seed=1)
        network.attach(model.network_module)
        network.fuse_projections(model.fused_projection_groups())
        parameters = network.parameters()
        generator = torch.Generator().manual_seed(11)
        for parameter in parameters.values():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    assert model.enable_modulation_cache(BlockSwap) is None
    return model, parameters


def velocity_and_gradients(adapter, parameters, step, checkpointing: bool = False):
    adapter.wrap_blocks([checkpoint_wrapper("full" if checkpointing else "none")])
    velocity_BCHW = adapter.predict_velocity(*step)
    if parameters:
        velocity_BCHW.square().mean().backward()
    return velocity_BCHW.detach(), {
        name: p.grad for name, p in parameters.items() if p.grad is not None
    }


@pytest.mark.parametrize("qtype", [None, "int8"])
@pytest.mark.parametrize(
    ("kind", "checkpointing"),
    [(None, False), (LoraNetwork, True), (LohaNetwork, False)],
)
def test_it_computes_what_the_model_computes(
    tiny_model: Path, step, kind, qtype, checkpointing: bool
) -> None:
    options = {
        "reference_area": 0,
        "transform_block": quantizer(qtype) if qtype else None,
    }
    expected, gradients = velocity_and_gradients(
        *trained(tiny_model, kind, False, **options), step, checkpointing
    )
    found, from_table = velocity_and_gradients(
        *trained(tiny_model, kind, True, **options), step, checkpointing
    )
    assert relative(found, expected) < 2e-6
    assert from_table.keys() == gradients.keys()
    # As one vector: of a gradient near nothing only the rounding is left.
    flat, flat_from_table = (
        torch.cat([g.flatten() for g in found.values()] or [torch.ones(1)])
        for found in (gradients, from_table)
    )
    assert relative(flat_from_table, flat) < 1e-5


def test_references_with_a_level_of_their_own_have_their_own_row(
    tmp_path: Path, step, monkeypatch
) -> None:
    """That of t = 0, which is prefetched with the others and never the oldest:
    Qwen-Image-Edit-2511."""
    write_tiny_model(tmp_path, TinySpec(zero_cond_t=True))
    adapters = [
        open_tiny(tmp_path, reference_area=0, modulation_table=table)
        for table in (False, True)
    ]
    assert adapters[1].enable_modulation_cache(BlockSwap) is None
    adapters[1].prefetch_timesteps(LEVELS)
    monkeypatch.setattr(ModulationCache, "compute", None)
    with torch.no_grad():
        expected, found = (model.predict_velocity(*step) for model in adapters)
    assert relative(found, expected) < 2e-6
    assert sorted(adapters[1].modulation_cache._rows) == pytest.approx(
        [0.0, 0.3, 0.8125]
    )


def test_its_weights_are_no_longer_part_of_the_model(tiny_model: Path) -> None:
    model = open_tiny(tiny_model, modulation_table=True)
    before = {name for name, _ in model.network_module.named_parameters()}
    assert model.enable_modulation_cache(BlockSwap) is None
    gone = before - {name for name, _ in model.network_module.named_parameters()}
    names = [
        f"{stream}_mod.1.{part}"
        for stream in ("img", "txt")
        for part in ("weight", "bias")
    ]
    assert gone == {
        f"transformer_blocks.{index}.{name}" for index in range(2) for name in names
    }


@torch.no_grad()
def test_a_row_has_the_same_bits_in_any_company(tiny_model: Path) -> None:
    tables = [
        ModulationCache(
            open_tiny(tiny_model).network_module, CPU, torch.float32, BlockSwap
        )
        for _ in range(3)
    ]
    tables[0].prefetch_timesteps([0.3])
    tables[1].prefetch_timesteps([0.9, 0.1, 0.3, 0.7])
    for level in (0.5, 0.3):
        tables[2].prefetch_timesteps([level])
    level = float(torch.tensor(0.3))
    for table in tables[1:]:
        for row, other in zip(tables[0]._rows[level], table._rows[level], strict=True):
            assert torch.equal(row, other)


@torch.no_grad()
def test_streamed_weights_give_the_same_rows_through_two_buffers(
    tiny_model: Path, monkeypatch
) -> None:
    plain = ModulationCache(
        open_tiny(tiny_model).network_module, CPU, torch.float32, BlockSwap
    )
    monkeypatch.setattr(ModulationCache, "is_elsewhere", lambda cache: True)
    swaps: list[BlockSwap] = []

    def streaming(layers, device) -> BlockSwap:
        swaps.append(BlockSwap(layers, device))
        return swaps[-1]

    streamed = ModulationCache(
        open_tiny(tiny_model).network_module, CPU, torch.float32, streaming
    )
    for _ in range(2):
        streamed.compute(LEVELS)
    plain.compute(LEVELS)
    assert all(
        torch.equal(a, b)
        for x in LEVELS
        for a, b in zip(plain._rows[x], streamed._rows[x], strict=True)
    )
    (swap,) = swaps
    assert len(swap._waiting) == 4 and len(swap._buffers) == 2


def test_announced_levels_are_computed_once_and_old_ones_leave(
    tiny_model: Path, step, monkeypatch
) -> None:
    model = open_tiny(tiny_model, reference_area=0, modulation_table=True)
    assert model.enable_modulation_cache(BlockSwap) is None
    computed: list[float] = []
    compute = ModulationCache.compute

    def counting(table, levels) -> None:
        computed.extend(levels)
        compute(table, levels)

    monkeypatch.setattr(ModulationCache, "compute", counting)
    model.prefetch_timesteps(LEVELS)
    model.predict_velocity(*step)
    assert sorted(computed) == pytest.approx([0.3, 0.8125])
    model.prefetch_timesteps([0.8125, *(place / 1000 for place in range(MOST_ROWS))])
    # never fewer than were announced at once
    assert len(model.modulation_cache._rows) == MOST_ROWS + 1
    assert (
        0.8125 in model.modulation_cache._rows
        and float(torch.tensor(0.3)) not in model.modulation_cache._rows
    )


@pytest.mark.parametrize("what", ["dora", "whole model", "time embedding"])
def test_it_says_where_it_cannot_be(tiny_model: Path, step, what: str) -> None:
    model = open_tiny(tiny_model, reference_area=0, modulation_table=True)
    if what == "dora":
        DoraNetwork(model.lora_targets(), 4, 4.0, dropout=0.0, seed=1).attach(
            model.network_module
        )
    else:
        part = (
            model.network_module
            if what == "whole model"
            else model.network_module.time_text_embed
        )
        part.requires_grad_(True)
    before = model.predict_velocity(*step)
    reason = model.enable_modulation_cache(BlockSwap)
    assert reason and "\n" not in reason
    assert torch.equal(model.predict_velocity(*step), before)
