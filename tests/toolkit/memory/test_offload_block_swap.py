"""Swapped blocks compute the same bits, and their weights are fetched in the order and
as often as needed."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import torch

from tests.toolkit.memory.toy_blocks import CPU, Stack, same
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.offload import BlockSwap, swapped_blocks
from toolkit.networks.lora import DoraNetwork, LoraNetwork
from toolkit.networks.lycoris import LohaNetwork


class Watched(BlockSwap):
    """Keeps which block was copied, in order."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.copied: list[int] = []

    def _copy(self, source, buffer) -> None:
        self.copied.append(buffer.place)
        super()._copy(source, buffer)

    def since(self) -> list[int]:
        copied, self.copied = self.copied, []
        return copied


def swapping(swapped: int, level: str = "none", **options) -> tuple[Stack, Watched]:
    stack = Stack(**options)
    swap = Watched(stack.blocks(*swapped_blocks(swapped, len(stack.model))), CPU)
    return stack.wrap(checkpoint_wrapper(level), swap), swap


@pytest.mark.parametrize(
    ("count", "blocks", "expected"),
    [
        (1, 5, (2,)),
        (3, 6, (1, 3, 5)),
        (4, 5, (0, 1, 3, 4)),
        (5, 5, (0, 1, 2, 3, 4)),
        (0, 5, ()),
    ],
)
def test_they_are_spread_evenly(
    count: int, blocks: int, expected: tuple[int, ...]
) -> None:
    assert swapped_blocks(count, blocks) == expected


def test_none_is_swapped_twice() -> None:
    for count in range(1, 60):
        chosen = swapped_blocks(count, 60)
        assert len(set(chosen)) == count and set(chosen) <= set(range(60)), count


@pytest.mark.parametrize(
    ("kind", "qtype"),
    [
        (LoraNetwork, "int4"),
        (LohaNetwork, None),
        (DoraNetwork, "int8"),
    ],
)
def test_the_same_bits_as_without(kind, qtype) -> None:
    options = {"kind": kind, "qtype": qtype, "count": 4}
    expected = Stack(**options).gradients()
    for level, count in (("none", 3), ("cheap", 1), ("full", 3)):
        stack, _ = swapping(count, level, **options)
        assert same(stack.gradients(), expected), (level, count)


def test_the_same_bits_step_after_step_with_pictures_in_between() -> None:
    expected, found = Stack(dropout=0.0), swapping(4, dropout=0.0)[0]
    with torch.no_grad():
        drawn = expected.output()
    for _ in range(2):
        gradients = expected.gradients()
        assert same(found.gradients(), gradients)
        with torch.no_grad():
            assert torch.equal(found.output(), drawn)


@pytest.mark.parametrize("level", ["none", "cheap", "full"])
def test_each_is_fetched_ahead_forward_and_backward(level: str) -> None:
    stack, swap = swapping(5, level)
    output = stack.output()
    assert swap.since() == [0, 1, 2, 3, 4]
    output.sum().backward()
    assert swap.since() == [2, 1, 0]  # the last two are still there
    stack.output().sum().backward()
    assert swap.since() == [2, 3, 4, 2, 1, 0]  # and the first two


def test_the_next_one_is_on_its_way_while_a_block_runs() -> None:
    stack, swap = swapping(5)
    under_way: list[tuple[int, list[int]]] = []
    for index, block in enumerate(stack.model):
        block.register_forward_hook(
            lambda *_, index=index: under_way.append((index, list(swap.copied)))
        )
    stack.output()
    assert under_way == [(index, list(range(min(index + 2, 5)))) for index in range(5)]


def test_drawing_goes_round() -> None:
    stack, swap = swapping(5)
    with torch.no_grad():
        stack.output()
        assert swap.since() == [0, 1, 2, 3, 4, 0]
        stack.output()
        assert swap.since() == [1, 2, 3, 4, 0]


@pytest.mark.parametrize("swapped", [3, 4, 5])
def test_two_passes_before_one_backward(swapped: int) -> None:
    """As with references of unlike sizes: one forward each, then the gradients of both.

    With an odd number a block comes back in the other buffer than the one its forward
    pass saw.
    """
    expected, found = Stack(dropout=0.0), swapping(swapped, dropout=0.0)[0]
    for stack in (expected, found):
        (stack.output(20).square().sum() + stack.output(12).sum()).backward()
    gradients = [
        [p.grad for p in stack.network.parameters().values()]
        for stack in (found, expected)
    ]
    assert same(*gradients)


def test_frozen_weights_leave_the_device_and_trained_ones_do_not() -> None:
    stack, swap = swapping(4, qtype="int8")
    buffers = {buffer.memory.untyped_storage().data_ptr() for buffer in swap._buffers}
    memories = {
        waiting.memory.untyped_storage().data_ptr() for waiting in swap._waiting
    }
    trained = {
        p.untyped_storage().data_ptr() for p in stack.network.parameters().values()
    }
    assert not trained & (buffers | memories)
    stack.gradients()
    of_blocks = {
        tensor.untyped_storage().data_ptr()
        for block in stack.blocks(*swapped_blocks(4, 5))
        for tensor in [*block.parameters(), *block.buffers()]
    }
    assert of_blocks <= buffers | memories | trained
    assert len(of_blocks & buffers) == 2 and len(of_blocks & memories) == 2


def test_weights_are_never_changed() -> None:
    stack = Stack()
    before = copy.deepcopy(
        {name: p for name, p in stack.model.named_parameters() if not p.requires_grad}
    )
    swap = BlockSwap(stack.blocks(0, 2, 3, 4), CPU)
    stack.wrap(swap).gradients(steps=2)
    after = dict(stack.model.named_parameters())
    assert after.keys() == before.keys() | {
        name for name, p in after.items() if p.requires_grad
    }
    assert all(torch.equal(after[name], p) for name, p in before.items())


@pytest.mark.parametrize("swapped", [3, 4, 5])
def test_a_block_that_comes_back_in_the_other_buffer_is_computed_with_its_own_weights(
    swapped: int,
) -> None:
    expected, (found, swap) = Stack(dropout=0.0), swapping(swapped, dropout=0.0)
    for stack in (expected, found):
        output = stack.output()
        if stack is found:
            swap._buffers.reverse()
            swap._ensure_loaded(0, None)
            swap._ensure_loaded(1, None)
            swap._ensure_loaded(0, None)
            swap._ensure_loaded(swapped - 1, None)
        output.sum().backward()
    gradients = [
        [p.grad for p in stack.network.parameters().values()]
        for stack in (found, expected)
    ]
    assert same(*gradients)


def test_a_block_that_nobody_used_does_not_arrive_after_the_next_in_its_buffer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One comes through the window, by a thread of its own, the next from pinned
    memory."""
    stream = Mock()
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    swap = BlockSwap(Stack().blocks(0, 1, 2), CPU)
    swap._stream, late = stream, Mock()
    buffer = swap._buffers[0]
    buffer.arriving = late
    stream.wait_stream.side_effect = lambda _: late.result.assert_called_once()
    swap._copy(torch.ones(1, dtype=torch.uint8), buffer)
    assert buffer.arriving is None
    assert buffer.arrived is stream.record_event()
