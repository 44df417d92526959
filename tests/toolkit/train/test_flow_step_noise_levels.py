"""Noise levels that share one pass over text and references
(`train.noise_levels_per_sample`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from toolkit.contracts.data import BatchSpec, PromptEmbeds, Size
from toolkit.contracts.model import DiffusionModel
from toolkit.contracts.training import StepLosses
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.flow.settings import cost_of, levels_of
from toolkit.memory.block_runner import BlockRunner
from toolkit.models.families import ModelLoadOptions
from toolkit.models.qwen_image21.family import FAMILY
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.networks.adapter import AdapterDropout
from toolkit.networks.lora import LoraNetwork
from toolkit.train.flow_step import NETWORK, FlowMatchingStep, PriorPreservation

SIDES = Size(6, 4)


class OneLevel(FlowMatchingStep):
    """One noise level of those that an item has in another step."""

    def __init__(self, shared: FlowMatchingStep, level: int) -> None:
        super().__init__(
            shared.model, shared.seed, weighting_scheme=shared.settings.weighting_scheme
        )
        self.shared, self.level = shared, level

    def sample_noise_and_t(
        self, spec: BatchSpec, shape_CHW: torch.Size, levels: int = 1, stacked: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        noise, t = self.shared.sample_noise_and_t(
            spec, shape_CHW, self.shared.most_levels
        )
        return noise[self.level :: self.shared.most_levels], t[
            self.level :: self.shared.most_levels
        ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_tiny_model(path, TinySpec(arch="qwen_image_2", layers=3))
    return path


@pytest.fixture
def model(folder: Path) -> DiffusionModel:
    return FAMILY.open(
        ModelLoadOptions(folder=folder, device=torch.device("cpu"), dtype=torch.float32)
    )


def batch_of(model: DiffusionModel, *references: int) -> LatentBatch:
    """An item for each number of references."""
    random = torch.Generator().manual_seed(3)
    channels = model.family.of_folder(model.options.folder).latent_channels
    prompts = []
    for number, count in enumerate(references):
        encoded = model.encode_prompt(f"a photo of cat {number}", ())
        encoded["slots"][:count] = torch.arange(count) // 4
        prompts.append(encoded)
    of_items = tuple(
        tuple(torch.randn(channels, 4, 4, generator=random) for _ in range(count))
        for count in references
    )
    rows = tuple(range(len(references)))
    return LatentBatch(
        latents_BCHW=torch.randn(
            len(rows), channels, SIDES.height, SIDES.width, generator=random
        ),
        prompts=PromptEmbeds.stack(prompts),
        control_latents=of_items,
        spec=BatchSpec(0, rows, rows),
        names=tuple(map(str, rows)),
        loss_weight_B=torch.tensor([1.0, 0.5, 2.0][: len(rows)]),
    )


def attached(model: DiffusionModel, dropout: float = 0.0) -> LoraNetwork:
    network = LoraNetwork(list(model.lora_targets()), 2, 2, dropout, seed=1)
    network.attach(model.network_module)
    with torch.no_grad():
        for parameter in network.parameters().values():
            parameter.normal_(
                0, 0.1, generator=torch.Generator().manual_seed(parameter.numel())
            )
    return network


def gradients(
    network: LoraNetwork, losses: list[StepLosses]
) -> dict[str, torch.Tensor]:
    for parameter in network.parameters().values():
        parameter.grad = None
    for found in losses:
        (found.by_role[NETWORK].mean() / len(losses)).backward()
    return {
        name: parameter.grad.clone() for name, parameter in network.parameters().items()
    }


class Collected:
    """A `Backward` that sums gradients."""

    step, roles = 0, frozenset({NETWORK})

    def __call__(self, losses: dict[str, torch.Tensor], final: bool) -> None:
        losses[NETWORK].mean().backward()


@pytest.mark.parametrize(
    ("references", "level"),
    [
        ((0,), "none"),
        ((1,), "full"),
        ((3,), "none"),
        ((10,), "cheap"),
        ((2, 0, 2), "none"),
        ((2, 0, 2), "full"),
    ],
)
def test_the_gradient_is_that_of_as_many_passes(
    model, references: tuple[int, ...], level: str
) -> None:
    network, batch = attached(model), batch_of(model, *references)
    BlockRunner(model, torch.device("cpu"), torch.float32, level)
    shared = FlowMatchingStep(model, 7, noise_levels=4, weighting_scheme="sigma_sqrt")
    together = gradients(network, [shared(batch)])
    apart = gradients(network, [OneLevel(shared, number)(batch) for number in range(4)])
    difference = sum(
        float((together[name] - gradient).square().sum())
        for name, gradient in apart.items()
    )
    assert difference <= 1e-12 * sum(
        float(gradient.square().sum()) for gradient in apart.values()
    )


def test_masks_and_accumulated_items_count_as_in_one_batch_of_one_level(model) -> None:
    network, batch = attached(model), batch_of(model, 2, 0)
    mask = torch.rand(
        2, 1, SIDES.height, SIDES.width, generator=torch.Generator().manual_seed(1)
    )
    masked = replace(batch, loss_mask_B1HW=mask)
    shared = FlowMatchingStep(model, 7, noise_levels=4)
    of_batch = gradients(network, [shared(masked)])
    for other in (
        [OneLevel(shared, number)(masked) for number in range(4)],
        [shared(masked.select([row])) for row in range(2)],
    ):
        torch.testing.assert_close(
            gradients(network, other), of_batch, rtol=1e-5, atol=1e-6
        )
    without = gradients(network, [shared(batch)])
    assert any(
        not torch.allclose(of_batch[name], gradient)
        for name, gradient in without.items()
    )


def test_prior_preservation_is_the_mean_over_the_levels(model) -> None:
    network, batch = attached(model), batch_of(model, 3)
    batch = replace(batch, extra_prompts={"class": batch_of(model, 3).prompts})
    shared = FlowMatchingStep(model, 7, noise_levels=4)
    apart = [OneLevel(shared, number) for number in range(4)]
    for step in (shared, *apart):
        step.extra_losses["class"] = PriorPreservation(model, network, "class", 3.0)
    found = shared.backward(batch, Collected())
    together = {
        name: parameter.grad for name, parameter in network.parameters().items()
    }
    for parameter in network.parameters().values():
        parameter.grad = None
    losses = [step.backward(batch, Collected()) for step in apart]
    of_one = {
        name: parameter.grad / 4 for name, parameter in network.parameters().items()
    }
    torch.testing.assert_close(together, of_one, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        found.numbers["loss/class"],
        sum(each.numbers["loss/class"] for each in losses) / 4,
    )


def test_dropout_is_drawn_once_for_the_prefix(
    model, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, batch = attached(model, dropout=0.5), batch_of(model, 3)
    dropped: list[int] = []
    drop = AdapterDropout.inputs

    def seen(self: AdapterDropout, x: torch.Tensor) -> torch.Tensor:
        dropped.append(x.shape[1])
        return drop(self, x)

    monkeypatch.setattr(AdapterDropout, "inputs", seen)
    gradients(network, [FlowMatchingStep(model, 7, noise_levels=4)(batch)])
    target = SIDES.height * SIDES.width
    assert set(dropped) == {batch.prompts.lengths[0] + 3 * 16 + 4 * target}


def test_each_level_comes_from_its_own_part_of_the_distribution(model) -> None:
    spec = BatchSpec(0, (0, 1), (0, 1))
    step = FlowMatchingStep(model, 7, timestep_type="uniform", noise_levels=4)
    for part, t in enumerate(step.sample_t(spec, SIDES, 4)):
        assert part % 4 <= 4 * t <= part % 4 + 1
    named = {"timestep_type": "uniform", "num_timestep_buckets": 4}
    buckets = FlowMatchingStep(model, 7, samples_per_epoch=2, noise_levels=2, **named)
    of_use = [
        int(t * 4)
        for t in FlowMatchingStep(model, 7, samples_per_epoch=2, **named).sample_t(
            spec, SIDES
        )
    ]
    assert [int(t * 4) for t in buckets.sample_t(spec, SIDES, 2)] == [
        part for part in of_use for _ in range(2)
    ]
    assert step.sample_t(spec, SIDES) == FlowMatchingStep(
        model, 7, timestep_type="uniform"
    ).sample_t(spec, SIDES)


def test_pairs_of_t_and_loss_stay_apart(model) -> None:
    losses = FlowMatchingStep(model, 7, noise_levels=(1, 2, 4))(
        batch_of(model, 0, 1, 3)
    )
    t_BK, loss_BK = losses.per_sample["t"], losses.per_sample["loss"]
    assert [int((~t_K.isnan()).sum()) for t_K in t_BK] == [1, 2, 4]
    assert torch.equal(t_BK.isnan(), loss_BK.isnan())
    torch.testing.assert_close(loss_BK.nanmean(1), losses.by_role[NETWORK].detach())


def test_auto_takes_several_where_the_prefix_is_long() -> None:
    assert [levels_of("auto", 1, prefix, 100) for prefix in (10, 99, 100, 300)] == [
        1,
        1,
        4,
        4,
    ]
    assert [levels_of((1, 3), references, 5, 5) for references in (0, 1, 2)] == [
        1,
        3,
        3,
    ]
    assert cost_of(4, 300, 100) == 700 / 1600
