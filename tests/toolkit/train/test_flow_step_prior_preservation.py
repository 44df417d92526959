"""Prior preservation: what the adapter changes for another prompt is a loss, and
nothing else is."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tests.toolkit.train.conftest import Model
from tests.toolkit.train.test_flow_step import LATENTS, make_batch
from toolkit.contracts.data import PromptEmbeds
from toolkit.networks.lora import LoraNetwork
from toolkit.train.flow_step import NETWORK, FlowMatchingStep, PriorPreservation

OF_CLASS = PromptEmbeds(torch.full((3, 1, 1), 0.5), (1, 1, 1))


def trained(network: LoraNetwork) -> None:
    with torch.no_grad():
        network.layer_weight("layer", "lora_B.weight").fill_(0.3)


def gradients(
    model: Model, network: LoraNetwork, **factors: float
) -> tuple[Tensor, dict[str, Tensor], int]:
    """The gradient of the down matrix, the logged numbers, and how many backward passes
    there were."""
    step = FlowMatchingStep(model, seed=1)
    for name, factor in factors.items():
        step.extra_losses[name] = PriorPreservation(model, network, name, factor)
    batch = replace(make_batch(LATENTS), extra_prompts=dict.fromkeys(factors, OF_CLASS))
    finals = []

    class Backward:
        step, roles = 0, frozenset({NETWORK})

        def __call__(
            self, losses, retain_graph: bool = False, final: bool = True
        ) -> None:
            finals.append(final)
            losses[NETWORK].mean().backward()

    down = network.layer_weight("layer", "lora_A.weight")
    down.grad = None
    losses = step.backward(batch, Backward())
    assert finals == [False] * len(factors) + [True]
    plain_B = step(batch).by_role[NETWORK].detach()
    torch.testing.assert_close(
        losses.by_role[NETWORK].mean(), plain_B.mean() + sum(losses.numbers.values())
    )
    return down.grad.clone(), losses.numbers, len(finals)


def test_an_adapter_that_does_nothing_yet_has_no_such_loss(adapted) -> None:
    model, network = adapted
    _, numbers, _ = gradients(model, network, of_class=2.0)
    assert numbers["loss/of_class"] == 0


def test_it_is_the_mean_squared_change_of_the_prediction_for_the_other_prompt(
    adapted,
) -> None:
    model, network = adapted
    trained(network)
    batch = replace(make_batch(LATENTS), extra_prompts={"of_class": OF_CLASS})
    x_t_BCHW, t_B = LATENTS + 1, torch.full((3,), 0.5)
    loss_B = PriorPreservation(model, network, "of_class", 2.0)(batch, x_t_BCHW, t_B)
    delta = network.layer_weight("layer", "lora_B.weight") @ network.layer_weight(
        "layer", "lora_A.weight"
    )
    change_BHWC = (x_t_BCHW.permute(0, 2, 3, 1) + 0.5) @ delta.T
    torch.testing.assert_close(loss_B, 2.0 * change_BHWC.square().mean(dim=(1, 2, 3)))


def test_its_gradient_is_added_in_proportion_to_the_factor(adapted) -> None:
    model, network = adapted
    trained(network)
    plain, _, _ = gradients(model, network)
    once, one, _ = gradients(model, network, of_class=1.0)
    thrice, three, passes = gradients(model, network, of_class=3.0)
    both, _, most = gradients(model, network, of_class=1.0, blank=2.0)
    assert (once - plain).abs().max() > 1e-3
    torch.testing.assert_close(thrice - plain, 3 * (once - plain))
    torch.testing.assert_close(both, thrice)
    torch.testing.assert_close(three["loss/of_class"], 3 * one["loss/of_class"])
    assert (passes, most) == (2, 3)


def test_half_a_batch_keeps_its_own_prompts() -> None:
    embeds = torch.arange(3.0).reshape(3, 1, 1)
    batch = replace(
        make_batch(LATENTS), extra_prompts={"of_class": PromptEmbeds(embeds, (1, 1, 1))}
    )
    first, second = batch.halves()
    assert first.extra_prompts["of_class"].embeds_BLD.flatten().tolist() == [0, 1]
    assert second.extra_prompts["of_class"].embeds_BLD.flatten().tolist() == [2]
