"""Sharded parameters: each rank holds some rows of a weight.

A process trains its rows as a parameter of their own. The rows of rank 0 come first; all have as many, but
for the last ones, which may have fewer or none (as `torch.chunk` cuts). Imports no torch before there is a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class RowShard:
    """The local shard of a tensor: a range of its rows."""

    shape: tuple[int, ...]
    """Of the whole tensor. Rows are counted in its first dimension."""

    start: int
    stop: int
    """The row after the last one; equal to `start` where there are none."""

    @classmethod
    def of(cls, shape: Sequence[int], rank: int, size: int) -> RowShard:
        """What process `rank` of `size` has of a tensor of this shape."""
        each = rows_per_rank(shape[0], size)
        start = min(rank * each, shape[0])
        return cls(tuple(shape), start, min(start + each, shape[0]))


def rows_per_rank(rows: int, size: int) -> int:
    """The most rows that one of `size` processes has."""
    return -(-rows // size)


def is_sharded(parameter: Tensor) -> bool:
    """Whether FSDP2 has sharded a parameter."""
    return hasattr(parameter, "device_mesh")  # a DTensor; importing that class takes a second


def shard_of(parameter: Tensor) -> RowShard:
    """The local shard of a sharded parameter."""
    mesh = cast("DTensor", parameter).device_mesh
    return RowShard.of(parameter.shape, mesh.get_local_rank(), mesh.size())


def local_rows(parameter: Tensor) -> Tensor:
    """The numbers of a parameter that are in this process, all of one that is whole; the same memory, no gradient."""
    own = parameter.detach()
    return cast("DTensor", own).to_local() if is_sharded(parameter) else own


def local_shard_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """This process's rows of a parameter that is sharded, as a parameter of their own in the same memory.

    The gradients that FSDP2 adds up over the processes are handed over to it at once: they gather in its `grad`, as
    those of any parameter do, until somebody lets them go.
    """
    from torch import nn

    rows = nn.Parameter(local_rows(parameter))

    def hand_over(shared_out: nn.Parameter) -> None:
        gradient, shared_out.grad = cast("DTensor", shared_out.grad).to_local(), None
        rows.grad = gradient if rows.grad is None else rows.grad.add_(gradient)

    parameter.register_post_accumulate_grad_hook(hand_over)
    return rows
