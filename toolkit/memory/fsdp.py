"""Shards the model over the ranks: PyTorch's FSDP2 around every block.

The weights of a block are all-gathered while the block before it still runs, and freed
right after it, in the backward pass too. So every rank has to make the same passes in
the same order. Gradients of trained blocks are reduce-scattered as soon as the backward
pass of the block is done. An adapter that is added to a block later is not sharded.

The trainer calls `shard_block_fn` while it loads the model. The rows of a rank are in
`toolkit.system.sharded_param`; errors of other ranks in `toolkit.system.distributed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from toolkit.system.torch_compat import collective

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter

CollectiveRunner = Callable[..., Any]
"""Calls a collective with these arguments (`ProcessGroup.run_collective`)."""


def shard_block_fn(
    device: torch.device,
    dtype: torch.dtype,
    processes: int,
    run_collective: CollectiveRunner,
) -> Callable[[nn.Module, str], None]:
    """A function that shards a loaded block. It is called with each block in order as
    the block is loaded, so that at most one is unsharded.

    dtype: the compute dtype, to which weights are cast before they are gathered.
    Gradients are summed over the ranks in float32. The process group has to be
    initialised.

    Example::

        shard = shard_block_fn(device, torch.bfloat16, 2, group.run_collective)
        shard(block, "transformer_blocks.0")
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (processes,))
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )

    def shard(block: nn.Module, name: str) -> None:
        # Each block is a root of FSDP2: blocks are not nested.
        block.requires_grad_(False).to(device)
        sharded = fully_shard(
            block, mesh=mesh, reshard_after_forward=True, mp_policy=policy
        )
        sharded.set_custom_all_gather(cast("AllGather", _AllGather(run_collective)))
        sharded.set_custom_reduce_scatter(
            cast("ReduceScatter", _ReduceScatter(run_collective))
        )
        # Sums, not means: each rank has divided its losses by the samples of the whole
        # accumulation step.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)

    return shard


def enable_forward_prefetch(blocks: Sequence[nn.Module]) -> None:
    """Prefetches the weights of each block while the previous block of the pass runs,
    so that two blocks are unsharded at a time.

    blocks: sharded, in the order of the forward pass; none has run yet.
    """
    from torch.distributed.fsdp import share_comm_ctx

    sharded = cast("list[FSDPModule]", list(blocks))
    for block in sharded:
        # at the first run of this block, the block before it would have run already
        block._get_fsdp_state()._lazy_init()
    share_comm_ctx(sharded)
    # FSDP2 prefetches in the backward pass by itself, with a shared context
    for block, after in pairwise(sharded):
        block.set_modules_to_forward_prefetch([after])


class _Comm:
    """FSDP2's interface for collectives
    (`torch.distributed.fsdp._fully_shard._fsdp_api.Comm`)."""

    def __init__(self, run_collective: CollectiveRunner) -> None:
        self._run_collective = run_collective

    def allocate(
        self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        import torch

        return torch.empty(*size, dtype=dtype, device=device)


class _AllGather(_Comm):
    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: Any,
        async_op: bool = False,
    ) -> Any:
        gather = collective("all_gather_single")
        return self._run_collective(
            gather, output_tensor, input_tensor, group=group, async_op=async_op
        )


class _ReduceScatter(_Comm):
    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: Any,
        op: Any,
        async_op: bool = False,
    ) -> Any:
        scatter = collective("reduce_scatter_single")
        return self._run_collective(
            scatter, output_tensor, input_tensor, op=op, group=group, async_op=async_op
        )
