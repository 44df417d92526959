"""A micro-batch that is cut, by several processes or where memory runs out, has the
gradient and the logged numbers of the whole one: what is drawn for it is keyed by its
items, or by the first item of the whole."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.test_architecture import nodes_of, source, tracked
from tests.toolkit.train.conftest import Model
from tests.toolkit.train.test_flow_step import make_batch
from toolkit.contracts.data import BatchSpec, PromptEmbeds
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.networks.lora import LoraNetwork
from toolkit.train.flow_step import NETWORK, FlowMatchingStep, PriorPreservation
from toolkit.train.metrics_buffer import StepLossBuffer

ITEMS = 6
RANDOM = torch.Generator().manual_seed(4)
LATENTS = torch.randn((ITEMS, 2, 4, 4), generator=RANDOM).double()


def of_epoch(epoch: int) -> LatentBatch:
    """Six items with a mask, weights and other prompts."""
    random = torch.Generator().manual_seed(epoch)
    other = PromptEmbeds(torch.rand(ITEMS, 1, 1, generator=random), (1,) * ITEMS)
    return replace(
        make_batch(LATENTS, epoch, tuple(range(7, 7 + ITEMS))),
        loss_mask_B1HW=torch.rand(ITEMS, 1, 4, 4, generator=random),
        loss_weight_B=torch.rand(ITEMS, generator=random),
        extra_prompts={"class": other},
    )


def plain(model: Model, network: LoraNetwork) -> FlowMatchingStep:
    return FlowMatchingStep(
        model,
        3,
        num_timestep_buckets=4,
        samples_per_epoch=20,
        weighting_scheme="sigma_sqrt",
    )


def with_prior(model: Model, network: LoraNetwork) -> FlowMatchingStep:
    step = plain(model, network)
    step.extra_losses["class"] = PriorPreservation(model, network, "class", 2.0)
    return step


STEPS = {
    "plain": plain,
    "prior preservation": with_prior,
}


class Summed:
    """A `Backward` that sums the gradients of the pieces of a batch, each loss divided
    by the whole one's samples."""

    step, roles = 0, frozenset({NETWORK})

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __call__(
        self,
        losses: Mapping[str, Tensor],
        retain_graph: bool = False,
        final: bool = True,
    ) -> None:
        (losses[NETWORK].sum() / self.samples).backward()


def computed(
    step: FlowMatchingStep, network: LoraNetwork, batch: LatentBatch, pieces: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients and logged numbers of a batch that is cut."""
    for parameter in network.parameters().values():
        parameter.grad = None
    edges = [len(batch) * index // pieces for index in range(pieces + 1)]
    buffer = StepLossBuffer()
    for first, last in pairwise(edges):
        piece = batch.select(range(first, last))
        buffer.add(piece, step.backward(piece, Summed(len(batch))), [NETWORK], NETWORK)
    gradients = {
        name: p.grad.clone()
        for name, p in network.parameters().items()
        if p.grad is not None
    }
    numbers = {
        name: sum(count * float(mean) for count, mean in counted)
        / sum(count for count, _ in counted)
        for name, counted in buffer.numbers.items()
    }
    return gradients, numbers


def assert_cuts_are_equal(
    step: FlowMatchingStep, network: LoraNetwork, batch: LatentBatch
) -> None:
    gradients, numbers = computed(step, network, batch, 1)
    size = sum(float(gradient.square().sum()) for gradient in gradients.values())
    assert size > 0
    limit = (1e-6 if batch.latents_BCHW.dtype == torch.float64 else 3e-6) ** 2
    for pieces in (2, 3):
        of_pieces, numbers_of_pieces = computed(step, network, batch, pieces)
        difference = sum(
            float((of_pieces[name] - gradients[name]).square().sum())
            for name in gradients
        )
        assert difference <= limit * size
        assert numbers_of_pieces == pytest.approx(numbers, rel=1e-6)


def learned(model: Model) -> LoraNetwork:
    """A LoRA of the model that changes something; both in float64."""
    network = LoraNetwork(["layer"], rank=1, alpha=1, dropout=0, seed=1)
    network.attach(model)
    with torch.no_grad():
        network.layer_weight("layer", "lora_B.weight").fill_(0.3)
    model.double()
    return network


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of pieces are rounded otherwise than those of the whole: nothing is rounded
    to float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("kind", STEPS)
def test_a_batch_in_pieces_has_the_gradient_and_the_numbers_of_the_whole(
    kind: str,
) -> None:
    model = Model()
    network = learned(model)
    step = STEPS[kind](model, network)
    for epoch in range(8):
        assert_cuts_are_equal(step, network, of_epoch(epoch))


def test_a_piece_knows_the_first_item_of_the_whole_however_often_it_is_cut() -> None:
    whole = BatchSpec(2, (5, 6, 7, 8), (40, 41, 42, 43))
    assert whole.select([2, 3]).select([1]).first == whole.first == 40


ONLY_READERS = {"toolkit/contracts/data.py": 1, "toolkit/train/loop.py": 1}
"""`BatchSpec.first`, and the seed of the network's dropout, which is of each piece
(docs/multi_gpu.md)."""


def readers_of_a_first_item(text: str) -> int:
    """How often one item stands for all of a batch: `positions[0]`, `min(positions)`,
    `next(iter(positions))`."""

    def are_positions(node: ast.expr) -> bool:
        return isinstance(node, ast.Attribute) and node.attr == "positions"

    nodes = nodes_of(text)
    chosen = [
        n
        for n in nodes
        if isinstance(n, ast.Subscript) and isinstance(n.slice, ast.Constant)
    ]
    calls = [
        n
        for n in nodes
        if isinstance(n, ast.Call) and ast.unparse(n.func) in ("min", "max", "iter")
    ]
    return sum(are_positions(n.value) for n in chosen) + sum(
        any(map(are_positions, n.args)) for n in calls
    )


def test_nothing_is_keyed_by_the_first_item_of_a_piece() -> None:
    files = tracked("toolkit", "extensions", "jobs")
    found = {
        name: count
        for name in files
        if "positions" in (text := source(name))
        and (count := readers_of_a_first_item(text))
    }
    assert found == ONLY_READERS
