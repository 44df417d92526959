"""`train.preference`: the loss of a pair by its formula, in batches of pairs and of
other images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.utils.flop_counter import FlopCounterMode

from tests.toolkit.train.conftest import Model
from tests.toolkit.train.test_flow_step import LATENTS, make_batch
from tests.toolkit.train.test_flow_step_prior_preservation import trained
from toolkit.config.sections.train import DISTANCE, MARGIN, RIGHT, PreferenceConfig
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.networks.lora import LoraNetwork
from toolkit.train.flow_step import NETWORK, FlowMatchingStep
from toolkit.train.preference import PreferenceStep

WORSE = LATENTS.flip(0) * 0.7


def step_of(model: Model, network: LoraNetwork, **settings: float) -> PreferenceStep:
    return PreferenceStep(model, 1, PreferenceConfig(**settings), network.disabled)


def pairs(*rows: int):
    """The batch in which these rows have a worse image."""
    return replace(
        make_batch(LATENTS),
        worse=tuple(WORSE[row] if row in rows else None for row in range(3)),
    )


def errors(step: FlowMatchingStep, latents_BCHW: Tensor) -> Tensor:
    """The squared error of the velocity of each row."""
    batch = replace(make_batch(LATENTS), latents_BCHW=latents_BCHW)
    x_t_BCHW, target_BCHW, t_B = step.lesson(batch, 1)
    predicted_BCHW = step.model.predict_velocity(
        x_t_BCHW, t_B, batch.prompts, batch.control_latents
    )
    return (predicted_BCHW - target_BCHW).square().flatten(1).mean(1).detach()


def test_the_loss_is_that_of_the_formula(adapted) -> None:
    model, network = adapted
    trained(network)
    step = step_of(model, network, beta=30)
    found = step(pairs(0, 1, 2))
    gains = [errors(step, latents) for latents in (LATENTS, WORSE)]
    with network.disabled():
        gains = [
            gain - errors(step, latents)
            for gain, latents in zip(gains, (LATENTS, WORSE), strict=True)
        ]
    margin_B = -30 / 2 * (gains[0] - gains[1])
    torch.testing.assert_close(found.by_role[NETWORK], -logsigmoid(margin_B))
    torch.testing.assert_close(found.numbers[MARGIN], margin_B.mean())
    torch.testing.assert_close(found.numbers[RIGHT], (margin_B > 0).float().mean())
    assert found.numbers[DISTANCE] > 0


def test_a_network_that_does_nothing_yet_prefers_neither(adapted) -> None:
    found = step_of(*adapted, beta=5000)(pairs(0, 1, 2))
    torch.testing.assert_close(found.by_role[NETWORK], torch.full((3,), 2.0).log())
    assert found.numbers[MARGIN] == found.numbers[RIGHT] == found.numbers[DISTANCE] == 0


def test_its_gradient_leads_to_the_better_image_and_votes_exchanged_away_from_it(
    adapted,
) -> None:
    model, network = adapted
    parameters = list(network.parameters().values())
    batch = pairs(0, 1, 2)
    swapped = replace(batch, latents_BCHW=WORSE, worse=tuple(LATENTS))
    of_both = []
    for one in (batch, swapped):
        loss = step_of(model, network, beta=100)(one).by_role[NETWORK].mean()
        of_both.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        )
    assert of_both[0].abs().max() > 0
    torch.testing.assert_close(of_both[0], -of_both[1])  # at margin 0 both are as sure


def test_pairs_are_compared_in_a_share_of_the_micro_batches(adapted) -> None:
    model, network = adapted
    trained(network)
    whole, half, plain = (
        step_of(model, network),
        step_of(model, network, share=0.5),
        FlowMatchingStep(model, 1),
    )
    compared = 0
    for place in range(40):
        batch = replace(
            pairs(0, 1, 2), spec=replace(pairs().spec, positions=(place, 97, 98))
        )
        found = half(batch).by_role[NETWORK]
        expected = [step(batch).by_role[NETWORK] for step in (whole, plain)]
        is_compared = torch.equal(found, expected[0])
        assert is_compared != torch.equal(found, expected[1])
        assert torch.equal(half(batch).by_role[NETWORK], found), "a resume repeats it"
        compared += is_compared
    assert 10 <= compared <= 30


@pytest.mark.parametrize("rows", [(1,), (0, 2)])
def test_images_without_a_worse_one_are_trained_as_usual(
    adapted, rows: tuple[int, ...]
) -> None:
    model, network = adapted
    trained(network)
    mixed, alone = (
        step_of(model, network, beta=10)(pairs(*which)) for which in (rows, (0, 1, 2))
    )
    plain = FlowMatchingStep(model, 1)(make_batch(LATENTS))
    for row in range(3):
        expected = alone if row in rows else plain
        torch.testing.assert_close(
            mixed.by_role[NETWORK][row], expected.by_role[NETWORK][row]
        )
        torch.testing.assert_close(
            mixed.per_sample["t"][row], plain.per_sample["t"][row]
        )


def test_the_ordinary_loss_of_the_better_image_is_added_by_its_weight(adapted) -> None:
    model, network = adapted
    trained(network)
    without, with_it = (
        step_of(model, network, sft_weight=weight)(pairs(0, 1, 2))
        for weight in (0, 0.5)
    )
    plain = FlowMatchingStep(model, 1)(make_batch(LATENTS))
    added = with_it.by_role[NETWORK] - without.by_role[NETWORK]
    torch.testing.assert_close(
        added, 0.5 * plain.by_role[NETWORK], atol=1e-5, rtol=1e-4
    )


def test_half_a_batch_keeps_its_own_worse_images() -> None:
    first, second = pairs(0, 2).halves()
    assert (
        first.worse[1] is None
        and torch.equal(first.worse[0], WORSE[0])
        and torch.equal(second.worse[0], WORSE[2])
    )


def test_a_pair_takes_two_thirds_more_than_two_images(adapted) -> None:
    """Passes forward and backward, counted as matrix products; a step backward of a
    LoRA is as much as one forward."""
    model, network = adapted
    two = replace(make_batch(LATENTS), worse=()).select([0, 1])

    def operations(step: FlowMatchingStep, batch: LatentBatch) -> int:
        with FlopCounterMode(display=False) as counter:
            step(batch).by_role[NETWORK].sum().backward()
        return counter.get_total_flops()

    plain = operations(FlowMatchingStep(model, 1), two)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        FlowMatchingStep(model, 1)(two)
    one_pair = operations(step_of(model, network), pairs(0).select([0]))
    assert 0 < one_pair <= plain + counter.get_total_flops() and one_pair <= 1.6 * plain
