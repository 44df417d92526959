"""Which rows of a weight a process has, and that training them is training the
weight."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.fsdp  # once, not in each process
from torch import nn

from tests.processes import in_processes
from toolkit.memory.fsdp import shard_block_fn
from toolkit.system.distributed import ProcessGroup
from toolkit.system.sharded_param import (
    RowShard,
    is_sharded,
    local_rows,
    local_shard_parameter,
    rows_per_rank,
    shard_of,
)


@pytest.mark.parametrize("rows", range(1, 8))
@pytest.mark.parametrize("size", range(1, 6))
def test_rows_are_dealt_out_as_torch_cuts(rows: int, size: int) -> None:
    whole = torch.arange(rows * 2).view(rows, 2)
    chunks = [*whole.chunk(size), *[whole[:0]] * size]
    for rank in range(size):
        shard = RowShard.of(whole.shape, rank, size)
        assert shard.shape == (rows, 2)
        assert torch.equal(whole[shard.start : shard.stop], chunks[rank])
        assert shard.stop - shard.start <= rows_per_rank(rows, size)


def test_a_plain_parameter_is_all_here() -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    assert not is_sharded(parameter)
    assert (
        local_rows(parameter).data_ptr() == parameter.data_ptr()
        and not local_rows(parameter).requires_grad
    )


def test_the_rows_of_each_process_are_trained_in_place() -> None:
    """Of four rows the last of three processes has none."""

    def work(process_group: ProcessGroup) -> tuple:
        layer = nn.Linear(2, 4, bias=False)
        nn.init.constant_(layer.weight, 1.0)
        shard_block_fn(
            torch.device("cpu"),
            torch.float32,
            process_group.world_size,
            process_group.run_collective,
        )(layer, "block")
        assert is_sharded(layer.weight)
        rows = local_shard_parameter(layer.weight.requires_grad_(True))
        assert (
            rows.data_ptr() == local_rows(layer.weight).data_ptr()
            and rows.is_leaf
            and rows.requires_grad
        )
        for _ in range(2):
            layer(torch.ones(1, 2)).sum().backward()
        gradient = rows.grad.tolist()
        torch.optim.SGD([rows], lr=0.5).step()
        rows.grad = None
        layer(torch.ones(1, 2)).sum().backward()
        shard = shard_of(layer.weight)
        return (
            (shard.start, shard.stop),
            gradient,
            layer(torch.ones(1, 2)).tolist(),
            rows.grad.tolist(),
        )

    after = [[2 * (1 - 0.5 * 6)] * 4]
    assert in_processes(3, work) == [
        ((0, 2), [[6.0, 6.0]] * 2, after, [[3.0, 3.0]] * 2),
        ((2, 4), [[6.0, 6.0]] * 2, after, [[3.0, 3.0]] * 2),
        ((4, 4), [], after, []),
    ]
