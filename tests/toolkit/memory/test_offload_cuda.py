"""Block swap and activation offload with real copies on streams of their own: the same
bits as without.

Attention by whole matrices: the backward passes of the other kernels may add in any
order.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.toolkit.memory.toy_blocks import Stack, same
from toolkit.config.sections.train import CompileConfig
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.compiling import compile_wrapper
from toolkit.memory.offload import BlockSwap, offloading, swapped_blocks
from toolkit.memory.recompute import recomputing
from toolkit.networks.lora import DoraNetwork, LoraNetwork
from toolkit.networks.lycoris import LohaNetwork

pytestmark = pytest.mark.cuda

STEPS, TOKENS = 4, 512
"""Enough work for a copy to come too late where nothing waits for it."""


@pytest.fixture(autouse=True)
def attention_by_matrices() -> Iterator[None]:
    with sdpa_kernel(SDPBackend.MATH):
        yield


def swap_of(stack: Stack, count: int, device: torch.device) -> BlockSwap:
    return BlockSwap(stack.blocks(*swapped_blocks(count, len(stack.model))), device)


@pytest.mark.parametrize("level", ["none", "cheap", "full"])
@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize(
    ("kind", "qtype"),
    [
        (LoraNetwork, None),
        (LoraNetwork, "int8"),
        (LoraNetwork, "int4"),
        (LohaNetwork, None),
        (DoraNetwork, "int8"),
    ],
)
def test_swapped_blocks_compute_the_same_bits(
    cuda: torch.device, kind, qtype, count: int, level: str
) -> None:
    options = {"kind": kind, "qtype": qtype, "device": cuda}
    expected = Stack(**options).gradients(STEPS, TOKENS)
    stack = Stack(**options)
    stack.wrap(checkpoint_wrapper(level), swap_of(stack, count, cuda))
    assert same(stack.gradients(STEPS, TOKENS), expected)


def test_all_but_two_swapped_blocks_wait_in_the_cpu_memory(cuda: torch.device) -> None:
    stack = Stack(count=6, device=cuda)
    stack.wrap(swap_of(stack, 5, cuda)).gradients(STEPS, TOKENS)
    places = [block.q.base_layer.weight.device.type for block in stack.model]
    assert sorted(places) == ["cpu"] * 3 + ["cuda"] * 3
    assert all(p.device == cuda for p in stack.network.parameters().values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("qtype", [None, "int8"])
def test_offloaded_inputs_come_back_as_they_were(
    cuda: torch.device, qtype, dropout: float
) -> None:
    options = {"qtype": qtype, "dropout": dropout, "device": cuda}
    expected = Stack(**options).gradients(STEPS, TOKENS)
    assert same(
        Stack(**options)
        .wrap(checkpoint_wrapper("full"), *offloading(cuda))
        .gradients(STEPS, TOKENS),
        expected,
    )


def test_offloaded_inputs_leave_the_device(cuda: torch.device) -> None:
    """Between the passes: the inputs of 20 blocks but the last two are gone."""
    held = []
    for offload in ([], offloading(cuda)):
        stack = Stack(count=20, dropout=0.0, device=cuda).wrap(
            checkpoint_wrapper("full"), *offload
        )
        before = torch.cuda.memory_allocated(cuda)
        output = stack.output(TOKENS)
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated(cuda) - before)
        del output
    one = 2 * TOKENS * 32 * 4
    assert held[0] >= 19 * one and held[1] <= 5 * one


@pytest.mark.parametrize("swapped", [0, 3])
@pytest.mark.parametrize(
    ("qtype", "dropout"), [(None, 0.1), ("int8", 0.0), ("int4", 0.1)]
)
def test_what_a_block_saves_comes_back_as_it_was(
    cuda: torch.device, qtype, dropout: float, swapped: int
) -> None:
    options = {"qtype": qtype, "dropout": dropout, "device": cuda}
    expected = (
        Stack(**options).wrap(checkpoint_wrapper("full")).gradients(STEPS, TOKENS)
    )
    stack = Stack(**options)
    stack.wrap(recomputing(cuda), *([swap_of(stack, swapped, cuda)] if swapped else []))
    assert same(stack.gradients(STEPS, TOKENS), expected)


def test_what_a_block_saves_leaves_the_device(cuda: torch.device) -> None:
    """The peak is less than that of full checkpointing by more than a few inputs of 20
    blocks."""
    peaks = []
    for wrapper in (checkpoint_wrapper("full"), recomputing(cuda)):
        stack = Stack(count=20, dropout=0.0, device=cuda).wrap(wrapper)
        stack.gradients(1, TOKENS)
        before = torch.cuda.memory_allocated(cuda)
        torch.cuda.reset_peak_memory_stats(cuda)
        stack.gradients(1, TOKENS)
        peaks.append(torch.cuda.max_memory_allocated(cuda) - before)
    one = 2 * TOKENS * 32 * 4
    assert peaks[0] - peaks[1] >= 15 * one


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_all_that_a_small_gpu_needs_at_once(cuda: torch.device, compiled: bool) -> None:
    inner = [checkpoint_wrapper("full")]
    if compiled:
        torch._dynamo.reset()
        inner.append(compile_wrapper(CompileConfig(enabled=True, backend="aot_eager")))
    options = {"dropout": 0.0, "qtype": "int8", "device": cuda}
    expected = Stack(**options).wrap(*inner).gradients(STEPS, TOKENS)
    stack = Stack(**options)
    stack.wrap(*inner, *offloading(cuda), swap_of(stack, 3, cuda))
    assert same(stack.gradients(STEPS, TOKENS), expected)
