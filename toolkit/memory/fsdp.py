"""A model of which each process keeps a share: PyTorch's FSDP2 around every block.

Before a block runs, its weights are gathered from all processes, while the block before it still runs; they are dropped
right after it, in the backward pass too. So every process has to make the same passes in the same order. Where the
weights of a block are trained, their gradients are summed over the processes as soon as the block is done, and each
keeps those of its rows. What a network adds to a block later is not sharded: each process keeps all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter

CollectiveRunner = Callable[..., Any]
"""Calls a function that exchanges something with the other processes, with these arguments
(`ProcessGroup.run_collective`).
"""


def shard_block_fn(
    device: torch.device, dtype: torch.dtype, processes: int, exchange: CollectiveRunner
) -> Callable[[nn.Module, str], None]:
    """What leaves this process its share of a filled block; to be called for each block in order.

    dtype: of the computation: weights are rounded to it before they are gathered, gradients come back in float32 and
    are the sums over the processes. The processes are connected already. At most one block is whole while they are
    filled.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (processes,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)

    def share(block: nn.Module, name: str) -> None:
        # Each block is gathered by itself: none is another one's parent, so that must be said.
        block.requires_grad_(False).to(device)
        shared = fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        shared.set_custom_all_gather(cast("AllGather", _AllGather(exchange)))
        shared.set_custom_reduce_scatter(cast("ReduceScatter", _ReduceScatter(exchange)))
        # Sums, not means: each process has divided its losses by the samples of the whole window.
        shared.set_gradient_divide_factor(1.0)
        shared.set_force_sum_reduction_for_comms(True)

    return share


def enable_forward_prefetch(blocks: Sequence[nn.Module]) -> None:
    """Has each block gathered while the one before it runs, in the backward pass the one after it: two are whole then.

    blocks: sharded, in the order in which a pass runs them; none has run yet.
    """
    from torch.distributed.fsdp import share_comm_ctx

    shared = cast("list[FSDPModule]", list(blocks))
    for block in shared:
        block._get_fsdp_state()._lazy_init()  # a block's first run would do it, which is too late for the one before it
    share_comm_ctx(shared)
    for block, after in pairwise(shared):  # backwards FSDP2 does it by itself, once they have a context in common
        block.set_modules_to_forward_prefetch([after])


class _Exchange:
    """What FSDP2 asks of its communication (`torch.distributed.fsdp._fully_shard._fsdp_api.Comm`)."""

    def __init__(self, exchange: CollectiveRunner) -> None:
        self._exchange = exchange

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        import torch

        return torch.empty(*size, dtype=dtype, device=device)


class _AllGather(_Exchange):
    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool = False
    ) -> Any:
        import torch.distributed as dist

        return self._exchange(dist.all_gather_single, output_tensor, input_tensor, group=group, async_op=async_op)


class _ReduceScatter(_Exchange):
    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, op: Any, async_op: bool = False
    ) -> Any:
        import torch.distributed as dist

        return self._exchange(
            dist.reduce_scatter_single, output_tensor, input_tensor, op=op, group=group, async_op=async_op
        )
