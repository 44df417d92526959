"""Full copies of a run's tensors on the CPU of rank 0, which writes the files. Sharded ones are gathered one by one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from toolkit.distributed import ProcessGroup
from toolkit.interfaces import Network
from toolkit.sharded_param import RowShard
from toolkit.train.rank0_commands import WorkerContext
from toolkit.train.run import Run


def gather_full_tensors(
    process_group: ProcessGroup,
    tensors: Mapping[str, Tensor],
    shards: Mapping[str, RowShard],
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Full copies of `tensors` on the CPU in `dtype` (None: their own); on rank 0 only, empty on other ranks.

    shards: the shards of sharded tensors, by name. With any, it is a collective: all ranks have to call it.
    """
    copies = {name: process_group.gather_to_rank0(tensor, shards.get(name), dtype) for name, tensor in tensors.items()}
    return {name: copy for name, copy in copies.items() if copy is not None}


def network_state_dict(
    run: Run, network: Network, role: str, dtype: torch.dtype, raw: bool = False
) -> dict[str, Tensor]:
    """The tensors of a network file: copies on the CPU in `dtype`, under the names of the file. Called by rank 0.

    raw: the raw weights, also where there is an EMA.
    """
    run.broadcast_command(partial(_gather_export_on_worker, role=role, dtype=dtype, raw=raw))
    return _gather_export(run, network, role, dtype, raw)


def _gather_export_on_worker(worker: WorkerContext, role: str, dtype: torch.dtype, raw: bool) -> None:
    _gather_export(worker.run, worker.network, role, dtype, raw)


def _gather_export(run: Run, network: Network, role: str, dtype: torch.dtype, raw: bool) -> dict[str, Tensor]:
    return gather_full_tensors(
        run.process_group, network.export(run.roles[role].weights(raw)), network.sharded_params(), dtype
    )
