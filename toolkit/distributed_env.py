"""Rank and world size as the launcher's environment gives them. Imports no torch.

`torchrun` and `accelerate launch` start the processes and say in the environment which is which; it is read here only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.errors import UserError


@dataclass(frozen=True)
class DistributedEnv:
    """Rank, world size and local rank of this process."""

    rank: int = 0
    """0 to size - 1; 0 prints and writes."""

    size: int = 1
    local_rank: int = 0
    """Counted within the machine: the GPU of this process."""

    attempt: int = 0
    """How often the launcher has started the processes anew (`torchrun --max-restarts`). Its store stays the same."""

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    @property
    def is_single_process(self) -> bool:
        return self.size == 1


SINGLE_PROCESS = DistributedEnv()


def read_distributed_env(environment: Mapping[str, str] = os.environ) -> DistributedEnv:
    """The place that a launcher gave this process; alone where there is none.

    Raises UserError when the variables make no sense.
    """
    size = environment.get("WORLD_SIZE", "1")
    if size == "1":
        return SINGLE_PROCESS
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {size!r}, but {', '.join(missing)} is not set. Start several processes with "
            "`torchrun --nproc-per-node N run.py job.yaml`; for one process unset WORLD_SIZE."
        )
    try:
        rank, count, local = (int(environment[name]) for name in names[:3])
    except ValueError:
        rank, count, local = -1, 0, 0
    if not 0 <= rank < count or local < 0:
        given = ", ".join(f"{name}={environment[name]!r}" for name in names[:3])
        raise UserError(f"{given}: these values are inconsistent. Start the run with torchrun.")
    return DistributedEnv(rank, count, local, _attempt(environment))


def _attempt(environment: Mapping[str, str]) -> int:
    """torchrun's count; 0 with several machines, where each counts for itself."""
    if environment.get("LOCAL_WORLD_SIZE") != environment["WORLD_SIZE"]:
        return 0
    return int(environment.get("TORCHELASTIC_RESTART_COUNT") or 0)
