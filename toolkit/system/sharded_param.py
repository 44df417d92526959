"""Sharded parameters: each rank holds some rows of a weight.

A rank trains its rows as a separate parameter. The rows of rank 0 come first; all ranks
have the same number, except the last ones, which may have fewer or none (as with
`torch.chunk`). This module does not communicate: FSDP2 gathers and reduces,
`distributed` collects shards for a file. Imports torch only when it is used. Called by
full fine-tuning (`toolkit.networks.full`), the optimizer step and the checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from toolkit.rounding import ceil_divide

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class RowShard:
    """The local shard of a tensor: a range of its rows.

    >>> RowShard.of((10, 4), rank=1, size=3)
    RowShard(shape=(10, 4), start=4, stop=8)
    """

    shape: tuple[int, ...]
    """Shape of the full tensor. Rows are indices of its first dimension."""

    start: int
    stop: int
    """The row after the last one; equal to `start` where there are none."""

    @classmethod
    def of(cls, shape: Sequence[int], rank: int, size: int) -> RowShard:
        """The shard of rank `rank` of `size` of a tensor of this shape."""
        rows = rows_per_rank(shape[0], size)
        start = min(rank * rows, shape[0])
        return cls(tuple(shape), start, min(start + rows, shape[0]))


def rows_per_rank(rows: int, size: int) -> int:
    """The largest number of rows that one of `size` ranks has.

    >>> rows_per_rank(10, size=3)
    4
    """
    return ceil_divide(rows, size)


def is_sharded(parameter: Tensor) -> bool:
    """Whether FSDP2 has sharded a parameter."""
    # a DTensor; importing that class takes a second
    return hasattr(parameter, "device_mesh")


def shard_of(parameter: Tensor) -> RowShard:
    """The local shard of a sharded parameter."""
    mesh = cast("DTensor", parameter).device_mesh
    return RowShard.of(parameter.shape, mesh.get_local_rank(), mesh.size())


def local_rows(parameter: Tensor) -> Tensor:
    """The local shard of a parameter, or the whole parameter where it is not sharded.
    The result shares its memory and has no gradient."""
    values = parameter.detach()
    if is_sharded(parameter):
        return cast("DTensor", values).to_local()
    return values


def local_shard_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """The local shard of a sharded parameter, as a separate parameter in the same
    memory.

    Gradients that FSDP2 has reduced move to it at once. They accumulate in its `grad`,
    as with any parameter.
    """
    from torch import nn

    rows = nn.Parameter(local_rows(parameter))

    def move_gradient(sharded: nn.Parameter) -> None:
        gradient = cast("DTensor", sharded.grad).to_local()
        sharded.grad = None
        rows.grad = gradient if rows.grad is None else rows.grad.add_(gradient)

    parameter.register_post_accumulate_grad_hook(move_gradient)
    return rows
