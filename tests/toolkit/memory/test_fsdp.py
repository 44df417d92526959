"""Blocks of which each process keeps a share compute what whole blocks do, frozen and
trained."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
import torch.distributed.fsdp  # once, not in each process
from torch import Tensor, nn

from tests.processes import in_processes
from toolkit.memory.fsdp import enable_forward_prefetch, shard_block_fn
from toolkit.networks.full import cast_on_use
from toolkit.system.distributed import PeerFailedError, ProcessGroup
from toolkit.system.sharded_param import local_shard_parameter
from toolkit.system.torch_compat import collective

CPU, FP32, BF16 = torch.device("cpu"), torch.float32, torch.bfloat16


class Block(nn.Module):
    """A frozen linear layer, and a trained one that is added later."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.frozen = nn.Linear(6, 6)

    def forward(self, x_BD: Tensor) -> Tensor:
        return torch.tanh(self.frozen(x_BD) + self.added(x_BD))


def passes(
    blocks: list[Block], row: int, between: Callable[[], None] = lambda: None
) -> tuple[list, list]:
    """Output and gradients of one backward pass, after one without gradients; `between`
    is called before it."""
    x_BD = torch.linspace(0, 1, 12).view(2, 6)[row : row + 1]
    for seed, block in enumerate(blocks):
        torch.manual_seed(50 + seed)
        block.added = nn.Linear(6, 6)
    with torch.no_grad():
        for block in blocks:
            block(x_BD)
    between()
    for block in blocks:
        x_BD = block(x_BD)
    x_BD.sum().backward()
    return x_BD.tolist(), [block.added.weight.grad.tolist() for block in blocks]


@pytest.mark.parametrize("ahead", [False, True])
def test_each_process_keeps_half_and_computes_the_same(ahead: bool) -> None:
    def work(process_group: ProcessGroup) -> tuple:
        share = shard_block_fn(
            CPU, FP32, process_group.world_size, process_group.run_collective
        )
        blocks = [Block(seed) for seed in (0, 1, 2)]
        for block in blocks:
            share(block, "block")
        if ahead:
            enable_forward_prefetch(blocks)
        kept = []

        def look() -> None:
            kept.extend(block.frozen.weight.to_local().shape for block in blocks)

        look()
        found = passes(blocks, process_group.rank, between=look)
        look()
        return kept, blocks[0].frozen.weight.requires_grad, found

    for rank, (kept, learns, found) in enumerate(in_processes(2, work)):
        assert kept == [(3, 6)] * 9, "nothing stays gathered"
        assert not learns
        assert found == passes([Block(seed) for seed in (0, 1, 2)], rank)


def test_a_block_is_gathered_while_the_one_before_it_runs() -> None:
    def work(process_group: ProcessGroup) -> list[str]:
        seen: list[str] = []

        def noted(call: Callable, *arguments, **named) -> object:
            seen.append("gather")
            return process_group.run_collective(call, *arguments, **named)

        share = shard_block_fn(CPU, FP32, process_group.world_size, noted)
        blocks = [nn.Linear(2, 2) for _ in range(3)]
        for name, block in zip("abc", blocks, strict=True):
            block.register_forward_hook(lambda *_, name=name: seen.append(name))
            share(block, name)
        enable_forward_prefetch(blocks)
        x_BD = torch.ones(1, 2, requires_grad=True)
        for name, block in zip("abc", blocks, strict=True):
            x_BD = block(x_BD)
            x_BD.register_hook(lambda gradient, name=name: seen.append(f"{name} back"))
        x_BD.sum().backward()
        return seen

    forward = ["gather", "gather", "a", "gather", "b", "c"]
    backward = ["gather", "gather", "c back", "gather", "b back", "a back"]
    assert in_processes(2, work) == [forward + backward] * 2


# ------------------------------------------------------------ trained


def layers(dtype: torch.dtype) -> list[nn.Module]:
    """Two blocks whose rows cannot be dealt out evenly; computed in `dtype`, masters in
    float32."""
    torch.manual_seed(1)
    return [
        nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)) for _ in range(2)
    ]


def inputs(micro_batch: int, dtype: torch.dtype) -> Tensor:
    return torch.linspace(-1, 1, 20, dtype=dtype).view(4, 5)[
        micro_batch : micro_batch + 1
    ]


def gradients(
    blocks: list[nn.Module], micro_batches: list[int], dtype: torch.dtype
) -> None:
    """Adds those of these micro-batches up."""
    for micro_batch in micro_batches:
        x_BD = inputs(micro_batch, dtype)
        for block in blocks:
            x_BD = block(x_BD)
        x_BD.float().square().sum().backward()


def trained(
    process_group: ProcessGroup, dtype: torch.dtype
) -> list[tuple[list, list, torch.dtype]]:
    """Rows and their gradients after two micro-batches of this process, of each
    weight."""
    share = shard_block_fn(
        CPU, dtype, process_group.world_size, process_group.run_collective
    )
    blocks = layers(dtype)
    for block in blocks:
        share(block, "block")
    rows = [
        local_shard_parameter(p.requires_grad_(True))
        for block in blocks
        for p in block.parameters()
    ]
    enable_forward_prefetch(blocks)
    each = 4 // process_group.world_size
    gradients(
        blocks,
        list(range(process_group.rank * each, process_group.rank * each + each)),
        dtype,
    )
    assert all(p.grad is None for block in blocks for p in block.parameters()), (
        "all were handed over"
    )
    return [(p.tolist(), p.grad.tolist(), p.grad.dtype) for p in rows]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "dtype"), [(2, FP32), (4, BF16)])
def test_gradients_of_rows_are_the_sums_over_all_processes(
    processes: int, dtype: torch.dtype
) -> None:
    whole = layers(dtype)
    for block in whole:
        for module in block:
            cast_on_use(module, dtype)
    gradients(whole, [0, 1, 2, 3], dtype)
    parameters = [p for block in whole for p in block.parameters()]
    ends = in_processes(processes, trained, dtype)
    for index, parameter in enumerate(parameters):
        rows, grads, dtypes = zip(*(end[index] for end in ends), strict=True)
        assert max(map(len, rows)) == -(-5 // processes) and set(dtypes) == {FP32}
        assert [row for part in rows for row in part] == parameter.tolist()
        found = torch.tensor([row for part in grads for row in part])
        torch.testing.assert_close(found, parameter.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("last", ["all_gather_single", "reduce_scatter_single"])
def test_a_process_that_is_gone_is_missed_in_the_middle_of_a_pass(last: str) -> None:
    """The second process ends where it would exchange something for the second time."""

    def work(process_group: ProcessGroup) -> None:
        calls: list[str] = []

        def exchange(call: Callable, *arguments, **named) -> object:
            calls.append(call.__name__)
            if (
                not process_group.is_main_process
                and calls.count(collective(last).__name__) == 2
            ):
                os._exit(1)
            return process_group.run_collective(call, *arguments, **named)

        share = shard_block_fn(CPU, FP32, process_group.world_size, exchange)
        block = nn.Linear(4, 4)
        share(block, "block")
        block.requires_grad_(True)
        for _ in range(2):
            block(torch.ones(1, 4)).sum().backward()

    first, second = in_processes(2, work)
    assert (
        second is None
        and isinstance(first, PeerFailedError)
        and "died without reporting an error" in str(first)
    )
