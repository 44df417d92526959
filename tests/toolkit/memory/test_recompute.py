"""Blocks whose saved tensors wait in CPU memory compute the bits of full checkpointing,
and hold little meanwhile.

CUDA's own copies cannot run here; these do the same work at once, and write down when
they were asked for it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.toolkit.memory.test_checkpointing import ATTENTION, Counted
from tests.toolkit.memory.test_offload_activations import WrittenDown
from tests.toolkit.memory.toy_blocks import CPU, TOKENS, WIDTH, Stack, same
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.offload import BlockSwap
from toolkit.memory.recompute import RecomputeOffload, recomputing
from toolkit.networks.lora import DoraNetwork, LoraNetwork
from toolkit.networks.lycoris import LohaNetwork, LokrNetwork

BLOCKS = 4
INPUT = 4 * 2 * TOKENS * WIDTH
"""Bytes of a block's input."""


class Copies(WrittenDown):
    """Also the sizes of what left, and what is on the device because it came back."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def to_host(self, tensor: Tensor) -> Tensor:
        self.sizes.append(tensor.numel() * tensor.element_size())
        return super().to_host(tensor)

    def told(self, what: str) -> list[int]:
        return [number for kind, number in self.log if kind == what]


def offloaded(copies: Copies, **options) -> Stack:
    return Stack(count=BLOCKS, **options).wrap(
        RecomputeOffload(copies, is_elsewhere=lambda tensor: True)
    )


def full(**options) -> Stack:
    return Stack(count=BLOCKS, **options).wrap(checkpoint_wrapper("full"))


@pytest.mark.parametrize(
    ("kind", "qtype"),
    [
        (LoraNetwork, None),
        (DoraNetwork, "int8"),
        (LohaNetwork, None),
        (LokrNetwork, "int4"),
    ],
)
def test_gradients_are_those_of_full_checkpointing(kind, qtype) -> None:
    """With dropout, which is drawn again as it was."""
    copies, options = Copies(), {"kind": kind, "qtype": qtype}
    assert same(
        offloaded(copies, **options).gradients(steps=2),
        full(**options).gradients(steps=2),
    )
    assert len(copies.hosts) > 2 * 5 * BLOCKS


def test_a_wrapper_of_the_cpu_moves_nothing() -> None:
    stack = Stack(count=BLOCKS).wrap(recomputing(CPU))
    assert same(stack.gradients(), full().gradients())


def test_swapped_blocks_wait_too() -> None:
    copies, stack = Copies(), Stack(count=BLOCKS, qtype="int8")
    swap = BlockSwap(stack.blocks(0, 1, 2, 3), CPU)
    stack.wrap(RecomputeOffload(copies, is_elsewhere=lambda tensor: True), swap)
    assert same(stack.gradients(steps=2), full(qtype="int8").gradients(steps=2))


def test_a_block_is_computed_twice_up_to_what_it_saves_last() -> None:
    with Counted() as counted:
        offloaded(Copies(), dropout=0.0).gradients()
    with Counted() as as_full:
        full(dropout=0.0).gradients()
    assert counted.calls[ATTENTION] == 2 * BLOCKS
    products = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    assert sum(counted.calls[op] for op in products) == sum(
        as_full.calls[op] for op in products
    )


def test_weights_and_what_is_small_stay() -> None:
    copies = Copies()
    stack = Stack(count=1, dropout=0.0, rank=1).wrap(
        RecomputeOffload(copies, is_elsewhere=lambda tensor: True)
    )
    for parameter in stack.model.parameters():
        parameter.requires_grad_(True)  # so the block saves its weights
    stack.gradients()
    weights = {4 * parameter.numel() for parameter in stack.model.parameters()}
    assert weights.isdisjoint(copies.sizes)
    assert min(copies.sizes) >= INPUT / 64 and max(copies.sizes) == 2 * INPUT


def test_what_several_operations_save_leaves_once() -> None:
    copies, left = Copies(), []
    plain = copies.to_host

    def to_host(tensor: Tensor) -> Tensor:
        left.append((tuple(tensor.shape), tensor.double().sum().item()))
        return plain(tensor)

    copies.to_host = to_host  # type: ignore[method-assign]
    stack = Stack(count=1, dropout=0.0, kind=DoraNetwork)
    stack.wrap(RecomputeOffload(copies, is_elsewhere=lambda tensor: True)).gradients()
    assert len(left) > 5 and len(set(left)) == len(left)


def test_the_last_is_back_first_and_a_large_one_not_ahead_of_its_time() -> None:
    copies = Copies()
    offloaded(copies, dropout=0.0).gradients()
    back, used = copies.told("back"), copies.told("used")
    assert sorted(back) == sorted(used)
    ahead = {
        number
        for number, used_at in _places(copies, "used").items()
        if used_at > _places(copies, "back")[number] + 1
    }
    assert ahead and all(copies.sizes[number] <= INPUT for number in ahead)
    # Inputs of all blocks but the first leave in the forward pass, and come back for
    # the block before has ended.
    inputs = range(BLOCKS - 1)
    assert set(inputs) <= set(back) and [
        number for number in used if number in inputs
    ] == [2, 1, 0]
    assert {0, 1} <= ahead


def _places(copies: Copies, what: str) -> dict[int, int]:
    return {
        number: place for place, (kind, number) in enumerate(copies.log) if kind == what
    }


def test_after_the_backward_pass_nothing_waits() -> None:
    copies = Copies()
    stack = offloaded(copies)
    stack.gradients()
    gc.collect()
    assert all(host() is None for host in copies.hosts)


def test_two_passes_go_backward_in_the_opposite_order() -> None:
    """Items of unlike sizes: the passes of a batch, then all backward."""
    found = []
    for stack in (offloaded(Copies(), dropout=0.0), full(dropout=0.0)):
        (stack.output().sum() + stack.output(tokens=7).sum()).backward()
        found.append(stack.learned())
    assert same(*found)


def test_a_graph_can_be_gone_through_twice() -> None:
    found = []
    for stack in (offloaded(Copies(), dropout=0.0), full(dropout=0.0)):
        total = stack.output().sum()
        total.backward(retain_graph=True)
        total.backward()
        found.append(stack.learned())
    assert same(*found)


def test_an_output_that_nothing_uses_is_left_out() -> None:
    """As the text of a model's last block."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.used(x).square(), self.unused(x).square()

    def run(block: nn.Module, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return block(*tensors)

    found = []
    for wrapper in (
        checkpoint_wrapper("full"),
        RecomputeOffload(Copies(), is_elsewhere=lambda tensor: True),
    ):
        torch.manual_seed(0)
        block, x = Two(), torch.ones((1, 3, 8), requires_grad=True)
        wrapper(run)(block, x)[0].sum().backward()
        found.append([x.grad, block.used.weight.grad])
        assert block.unused.weight.grad is None
    assert same(*found)


def test_without_gradients_nothing_is_wrapped() -> None:
    copies = Copies()
    with torch.no_grad():
        assert torch.equal(
            offloaded(copies, dropout=0.0).output(), full(dropout=0.0).output()
        )
    assert copies.log == []


def test_what_leaves_is_let_go_when_memory_runs_out() -> None:
    copies = Copies()

    def run(block: nn.Module, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        raise torch.OutOfMemoryError

    wrapped: Callable = RecomputeOffload(copies, is_elsewhere=lambda tensor: True)(run)
    with pytest.raises(torch.OutOfMemoryError):
        wrapped(nn.Identity(), torch.ones(2, requires_grad=True))
    assert copies.log[-1] == ("let go", 0)
