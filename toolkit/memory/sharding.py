"""A frozen model of which each process keeps a share: PyTorch's FSDP2 around every block.

Before a block runs, its weights are gathered from all processes, and they are dropped right after it, in the backward
pass too. So every process has to make the same passes in the same order. What a network adds to a block later is not
shared out: each process keeps all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def block_sharing(device: torch.device, processes: int) -> Callable[[nn.Module, str], None]:
    """What leaves this process its share of a filled block; to be called for each block in order.

    The processes are connected already. At most one block is whole at a time.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes,))

    def share(block: nn.Module, name: str) -> None:
        # Each block is gathered by itself: none is another one's parent, so that must be said.
        fully_shard(block.requires_grad_(False), mesh=mesh, reshard_after_forward=True)

    return share
