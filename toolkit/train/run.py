"""A training run while it is going on: its weights by role, its state, and who watches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from toolkit.contracts import TrainState
from toolkit.optim.ema import Ema
from toolkit.optim.optimizers import averaged, averages
from toolkit.optim.schedules import Schedule
from toolkit.train.hook import Hook


@dataclass
class Role:
    """One set of weights that is trained together, with what trains it."""

    parameters: dict[str, nn.Parameter]
    optimizer: Optimizer
    lr: float
    """Base learning rate; the schedule gives a factor of it."""

    schedule: Schedule
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""

    ema: Ema | None = None

    def lr_at(self, step: int) -> float:
        """The learning rate of the next step when `step` are done."""
        return self.lr * self.schedule(step)

    def weights_to_keep(self) -> dict[str, torch.Tensor]:
        """What samples and saved files use: the average where there is one, else the weights themselves."""
        if self.ema:
            return self.ema.averages
        if not averages(self.optimizer):
            return {name: p.detach() for name, p in self.parameters.items()}
        with averaged(self.optimizer):
            return {name: p.detach().clone() for name, p in self.parameters.items()}

    def evaluation(self) -> AbstractContextManager[None]:
        """Inside the block the parameters hold `weights_to_keep`, after it their own values again."""
        return self.ema.applied() if self.ema else averaged(self.optimizer)


@dataclass
class Run:
    """Everything the loop and its hooks share."""

    name: str
    """Stem of the run's files."""

    folder: Path
    steps: int
    """Optimizer steps in all."""

    accumulation: int
    """Micro-batches per optimizer step."""

    seed: int
    roles: dict[str, Role]
    hooks: Sequence[Hook] = ()
    state: TrainState = field(default_factory=TrainState)
    record: dict[str, Any] = field(default_factory=dict)
    """JSON values that every state keeps beside the training's own: the settings, the dataset."""

    memory_advice: str = ""
    """What the user can change when memory runs out, most effective first."""

    stop_asked: Callable[[], bool] = lambda: False
    """Whether a signal asks for an end; read between micro-batches."""

    settle: Callable[[], None] = lambda: None
    """Set by the loop: fetches the numbers of all steps so far from the device and gives them to the hooks."""

    stop_reason: str | None = None
    """Set by a hook that asks for a stop."""

    @property
    def stopping(self) -> bool:
        """Whether the loop should end at the next boundary."""
        return self.stop_reason is not None or self.stop_asked()
