"""Rank and world size as the launcher's environment gives them. Imports no torch.

`torchrun` and `accelerate launch` set these environment variables; only this module
reads them. It connects nothing: `distributed.rendezvous_processes` does that with its
result. `run` reads them once at the start; the plan uses the number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from toolkit.errors import UserError


@dataclass(frozen=True)
class DistributedEnv:
    """Rank, world size and local rank of this process.

    >>> env = DistributedEnv(rank=9, world_size=16, local_rank=1)
    >>> env.is_main_process, env.is_single_process
    (False, False)
    """

    rank: int = 0
    """0 to world_size - 1; rank 0 prints and writes."""

    world_size: int = 1
    local_rank: int = 0
    """Rank within the machine: the index of its GPU."""

    attempt: int = 0
    """Number of restarts by the launcher (`torchrun --max-restarts`). The launcher keeps
    its store over them."""

    address: str = field(default="", compare=False)
    """Host and port where the processes meet."""

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    @property
    def is_single_process(self) -> bool:
        return self.world_size == 1


SINGLE_PROCESS = DistributedEnv()


def read_distributed_env(environment: Mapping[str, str] = os.environ) -> DistributedEnv:
    """Rank and world size as the launcher set them; a single process without a
    launcher.

    Raises UserError when the variables are inconsistent.

    >>> read_distributed_env({}).world_size
    1
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
        rank = count = local = -1
    if not 0 <= rank < count or local < 0:
        given = ", ".join(f"{name}={environment[name]!r}" for name in names[:3])
        raise UserError(
            f"{given}: these values are inconsistent. Start the run with torchrun."
        )
    address = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    return DistributedEnv(rank, count, local, _attempt(environment), address)


def _attempt(environment: Mapping[str, str]) -> int:
    """torchrun's restart count; 0 with several machines, because each machine counts
    separately."""
    if environment.get("LOCAL_WORLD_SIZE") != environment["WORLD_SIZE"]:
        return 0
    return int(environment.get("TORCHELASTIC_RESTART_COUNT") or 0)
