"""Whole tensors of a run on the CPU, for its files, whether they are whole here or sharded between processes.

Only rank 0 writes files. What it has not got, the others give while they wait for it, tensor by tensor.
"""

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
    parts: Mapping[str, RowShard],
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Copies of `tensors` on the CPU, whole, in `dtype` (None: as they are); in rank 0 only, none elsewhere.

    parts: those of which each process has some rows, by name; all processes that share them out call it then.
    """
    copies = {name: process_group.gather_to_rank0(tensor, parts.get(name), dtype) for name, tensor in tensors.items()}
    return {name: copy for name, copy in copies.items() if copy is not None}


def network_state_dict(
    run: Run, network: Network, role: str, dtype: torch.dtype, raw: bool = False
) -> dict[str, Tensor]:
    """What a file of the network holds: copies on the CPU in `dtype`, under the names of the file.

    raw: the weights as they are, also where an average is kept. Called by rank 0.
    """
    run.broadcast_command(partial(_give_exported, role=role, dtype=dtype, raw=raw))
    return _exported(run, network, role, dtype, raw)


def _give_exported(worker: WorkerContext, role: str, dtype: torch.dtype, raw: bool) -> None:
    _exported(worker.run, worker.network, role, dtype, raw)


def _exported(run: Run, network: Network, role: str, dtype: torch.dtype, raw: bool) -> dict[str, Tensor]:
    return gather_full_tensors(
        run.process_group, network.export(run.roles[role].weights(raw)), network.sharded_params(), dtype
    )
