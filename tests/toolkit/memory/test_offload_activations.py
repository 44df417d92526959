"""What waits in the CPU memory comes back whole, in time, and is not kept longer than
it is wanted.

CUDA's own copies cannot run here; these do the same work at once, and write down when
they were asked for it.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.toolkit.memory.toy_blocks import CPU, TOKENS, WIDTH, Stack, same
from toolkit.config.sections.train import CompileConfig
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.compiling import compile_wrapper
from toolkit.memory.offload import (
    ActivationOffload,
    AttentionOffload,
    InFlightCopies,
    offloading,
)

BLOCKS = 5


class WrittenDown:
    """Copies by number, in the order of `log`; what waits is told by weak references in
    `hosts`."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.hosts: list[weakref.ref[Tensor]] = []
        self.bytes: list[int] = []

    def begin_block(self) -> None:
        self.log.append(("block", len(self.hosts)))

    def to_host(self, tensor: Tensor) -> Tensor:
        self.log.append(("out", len(self.hosts)))
        host = tensor.clone()
        self.bytes.append(host.nbytes)
        self.hosts.append(weakref.ref(host))
        return host

    def release(self) -> None:
        self.log.append(("let go", 0))

    def to_device(self, host: Tensor) -> Callable[[], Tensor]:
        number = next(n for n, ref in enumerate(self.hosts) if ref() is host)
        self.log.append(("back", number))

        def arrive() -> Tensor:
            self.log.append(("used", number))
            return host.clone()

        return arrive


def offloaded(copies: WrittenDown, dropout: float = 0.1) -> Stack:
    offload = ActivationOffload(copies, is_elsewhere=lambda tensor: True)
    return Stack(count=BLOCKS, dropout=dropout).wrap(
        checkpoint_wrapper("full"), offload
    )


def with_attention_elsewhere(
    copies: WrittenDown, compiled: bool = False, dropout: float = 0.1
) -> Stack:
    settings = CompileConfig(enabled=True, backend="aot_eager", fullgraph=True)
    inner = [compile_wrapper(settings)] if compiled else []
    return Stack(count=BLOCKS, dropout=dropout).wrap(
        checkpoint_wrapper("offload_attention"),
        *inner,
        AttentionOffload(copies, is_elsewhere=lambda tensor: True),
    )


def plain() -> Stack:
    return Stack(count=BLOCKS, dropout=0.0)


def test_gradients_are_the_same_bits() -> None:
    copies = WrittenDown()
    assert same(
        offloaded(copies).gradients(steps=2), Stack(count=BLOCKS).gradients(steps=2)
    )
    # the first block was given nothing that needs a gradient
    assert len(copies.hosts) == 2 * (BLOCKS - 1)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_of_attention_its_results_alone_leave_the_device(
    fresh_compiler: None, compiled: bool, dropout: float
) -> None:
    """Not inputs, weights, or the state of random numbers. Each block's come back while
    the next one goes backward."""
    copies = WrittenDown()
    found = with_attention_elsewhere(copies, compiled, dropout).gradients()
    assert same(found, Stack(count=BLOCKS, dropout=dropout).gradients())
    heads, number = 2, 4
    output, sums = 2 * TOKENS * WIDTH * number, 2 * TOKENS * heads * number
    assert copies.bytes == BLOCKS * [output, sums]
    # the first block's copies are asked for before those of the second are used up
    places = {event: place for place, event in enumerate(copies.log)}
    for block in range(BLOCKS - 2):
        of_next = 2 * (block + 1) + 1
        assert places["back", 2 * block] < places["used", of_next]
    gc.collect()
    assert all(host() is None for host in copies.hosts)


def test_what_leaves_is_let_go_when_memory_runs_out() -> None:
    copies = WrittenDown()

    def full(block: nn.Module, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        ActivationOffload(copies, is_elsewhere=lambda tensor: True)(full)(
            nn.Identity(), torch.ones(2, requires_grad=True)
        )
    assert copies.log[-1] == ("let go", 0)


def test_each_comes_back_while_its_successor_goes_backward() -> None:
    copies = WrittenDown()
    offloaded(copies).gradients()
    first, last = 0, BLOCKS - 2
    expected = [
        (what, number) for number in range(BLOCKS - 1) for what in ("block", "out")
    ] + [("back", last)]
    for number in range(last, first, -1):
        expected += [("back", number - 1), ("used", number)]
    assert copies.log == [*expected, ("used", first)]


def test_after_the_backward_pass_nothing_waits() -> None:
    copies = WrittenDown()
    stack = offloaded(copies)
    stack.gradients()
    gc.collect()
    assert all(host() is None for host in copies.hosts)
    first_step = copies.log.copy()
    stack.gradients()
    assert copies.log == first_step + [
        (what, number + BLOCKS - 1) for what, number in first_step
    ]


def test_two_passes_go_backward_in_the_opposite_order() -> None:
    """Items of unlike sizes: the passes of a batch, then all backward."""
    copies, found = WrittenDown(), []
    for stack in (offloaded(copies, dropout=0.0), plain()):
        (stack.output().sum() + stack.output(tokens=7).sum()).backward()
        found.append(stack.learned())
    assert same(*found)
    assert [number for what, number in copies.log if what == "used"] == list(
        reversed(range(2 * (BLOCKS - 1)))
    )


def test_what_leaves_is_held_until_a_later_block_has_waited_for_its_copy() -> None:
    leaving, waited, held = InFlightCopies(), [], []
    for block in range(4):
        leaving.begin_block()
        assert waited == list(range(block - 1)), (
            "while the next block computes, the copy may go on"
        )
        tensor = torch.ones(1)
        held.append(weakref.ref(tensor))
        leaving.hold(tensor, partial(waited.append, block))
        del tensor
        assert [ref() is None for ref in held] == [
            number < block - 1 for number in range(block + 1)
        ]
    leaving.release()
    assert waited == [0, 1, 2, 3]
    assert all(ref() is None for ref in held)


@pytest.mark.parametrize("way", [offloaded, with_attention_elsewhere])
def test_a_graph_can_be_gone_through_twice(way: Callable[..., Stack]) -> None:
    found = []
    for stack in (way(WrittenDown(), dropout=0.0), plain()):
        total = stack.output().sum()
        total.backward(retain_graph=True)
        total.backward()
        found.append(stack.learned())
    assert same(*found)


def test_nothing_waits_where_nothing_is_kept_or_there_is_nowhere_to_wait() -> None:
    copies = WrittenDown()
    with torch.no_grad():
        offloaded(copies).output()
    # nothing here is on CUDA
    Stack(count=BLOCKS).wrap(
        checkpoint_wrapper("full"), ActivationOffload(copies)
    ).gradients()
    assert copies.log == []
    assert offloading(CPU) == []
