"""Whole tensors of a run on the CPU, for its files, whether they are whole here or shared out between processes.

Only the first process writes files. What it has not got, the others give while they wait for it, tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from toolkit.contracts import Network
from toolkit.parallel import Team
from toolkit.parts import Part
from toolkit.train.lockstep import Follower
from toolkit.train.run import Run


def collected(
    team: Team, tensors: Mapping[str, Tensor], parts: Mapping[str, Part], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Copies of `tensors` on the CPU, whole, in `dtype` (None: as they are); in the first process only, none elsewhere.

    parts: those of which each process has some rows, by name; all processes that share them out call it then.
    """
    copies = {name: team.collect(tensor, parts.get(name), dtype) for name, tensor in tensors.items()}
    return {name: copy for name, copy in copies.items() if copy is not None}


def exported(run: Run, network: Network, role: str, dtype: torch.dtype, raw: bool = False) -> dict[str, Tensor]:
    """What a file of the network holds: copies on the CPU in `dtype`, under the names of the file.

    raw: the weights as they are, also where an average is kept. Called by the first process.
    """
    run.lead(partial(_give_exported, role=role, dtype=dtype, raw=raw))
    return _exported(run, network, role, dtype, raw)


def _give_exported(follower: Follower, role: str, dtype: torch.dtype, raw: bool) -> None:
    _exported(follower.run, follower.network, role, dtype, raw)


def _exported(run: Run, network: Network, role: str, dtype: torch.dtype, raw: bool) -> dict[str, Tensor]:
    return collected(run.team, network.export(run.roles[role].weights(raw)), network.shared_out(), dtype)
