"""A run of two small matrices whose states the tests write, damage and read."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from toolkit.optim.ema import Ema
from toolkit.optim.optimizers import build_optimizer
from toolkit.train.checkpoint_state import snapshot_state
from toolkit.train.checkpoint_store import checkpoint_dir, write_checkpoint
from toolkit.train.optimizer_step import Role
from toolkit.train.run import Run


def make_run(
    folder: Path,
    optimizer: str = "adamw",
    rank: int = 64,
    ema: bool = True,
    fill: int = 0,
) -> Run:
    """Two matrices, the larger one big enough (4096 numbers) for an 8-bit state."""
    generator = torch.Generator().manual_seed(fill)
    parameters = {
        "block.lora_A.weight": nn.Parameter(torch.randn(rank, 80, generator=generator)),
        "block.lora_B.weight": nn.Parameter(torch.randn(4, rank, generator=generator)),
    }
    role = Role(
        parameters,
        build_optimizer(optimizer, parameters.values(), 0.01, {}),
        lr=0.01,
        schedule=lambda step: 1.0,
        ema=Ema(parameters, 0.9) if ema else None,
    )
    return Run(
        "toy", folder, steps=100, grad_accum_steps=1, seed=77, roles={"network": role}
    )


def take_steps(run: Run, count: int) -> None:
    role = run.roles["network"]
    for _ in range(count):
        generator = torch.Generator().manual_seed(1000 + run.state.step)
        for parameter in role.parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(
                parameter.dtype
            )
        role.optimizer.step()
        if role.ema:
            role.ema.update()
        run.state.step += 1
        run.state.samples += 3


def saved(folder: Path, *steps: int) -> list[Path]:
    """The state folders of one run at these steps."""
    run, paths = make_run(folder), []
    for step in steps:
        take_steps(run, step - run.state.step)
        paths.append(save_state(run))
    return paths


def save_state(run: Run, keep: int = 2) -> Path:
    """What a save does, without the thread."""
    return write_checkpoint(checkpoint_dir(run.folder), snapshot_state(run), keep)
