"""A training run while it is going on: its weights by role, its state, and who watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from toolkit.contracts import TrainState
from toolkit.optim.ema import Ema
from toolkit.optim.optimizers import averaged, averages, state_tensors
from toolkit.optim.schedules import Schedule
from toolkit.parallel import Team
from toolkit.parts import Part
from toolkit.train.hook import Hook
from toolkit.train.lockstep import Order, hold_kept_weights, hold_own_weights
from toolkit.train.update import Update, WholeStep


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
    group_lrs: dict[str, float] = field(default_factory=dict)
    """Name -> base learning rate of each group of the optimizer, in its order; empty: one group, at `lr`."""

    update: Update = field(default_factory=WholeStep)
    """How gradients become a step."""

    after_step: Callable[[Tensor], dict[str, Tensor]] = lambda taken: {}
    """What the network does to its weights after each step that is `taken` (`Network.after_step`)."""

    shared_out: Mapping[str, Part] = field(default_factory=dict)
    """Parameters of which this process has some rows only, by their names (`Network.shared_out`)."""

    @property
    def size(self) -> int:
        """Bytes of its whole parameters."""
        return sum(prod(self.shape_of(name)) * p.element_size() for name, p in self.parameters.items())

    @property
    def state_bytes(self) -> int:
        """Bytes of what the optimizer remembers by now; nothing before its first step."""
        tensors, _ = state_tensors(self.optimizer, list(self.parameters))
        return sum(tensor.nbytes for tensor in tensors.values())

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a whole parameter."""
        return self.shared_out[name].shape if name in self.shared_out else tuple(self.parameters[name].shape)

    def lr_at(self, step: int) -> float:
        """The base learning rate of the next step when `step` are done."""
        return self.lr * self.schedule(step)

    def set_rates(self, step: int) -> None:
        """Gives each group of the optimizer its learning rate of the next step when `step` are done."""
        groups = self.optimizer.param_groups
        bases = self.group_lrs.values() or [self.lr] * len(groups)
        for group, base in zip(groups, bases, strict=True):
            group["lr"] = base * self.schedule(step)

    def rates(self) -> dict[str, float]:
        """The rates of the step just done that `lr_at` does not tell, by name.

        Those of several groups, and what an optimizer that finds its rate itself (Prodigy's and D-Adaptation's `d`)
        makes of them.
        """
        groups = dict(zip(self.group_lrs or [""], self.optimizer.param_groups, strict=bool(self.group_lrs)))
        given = {name: group["lr"] for name, group in groups.items() if name}
        found = {
            f"d*lr/{name}".rstrip("/"): float(group["d"]) * group["lr"]
            for name, group in groups.items()
            if "d" in group
        }
        return given | found

    def weights_to_keep(self) -> dict[str, torch.Tensor]:
        """What samples and saved files use: the average where there is one, else the weights themselves."""
        if self.ema:
            return self.ema.averages
        if not averages(self.optimizer):
            return {name: p.detach() for name, p in self.parameters.items()}
        with averaged(self.optimizer):
            return {name: p.detach().clone() for name, p in self.parameters.items()}

    def weights(self, raw: bool) -> dict[str, torch.Tensor]:
        """`weights_to_keep`, or the weights as they are."""
        return dict(self.parameters) if raw else self.weights_to_keep()

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
    batches_per_epoch: int = 0
    """Micro-batches of one epoch; 0: not known, and nothing is due by epochs."""

    hooks: Sequence[Hook] = ()
    state: TrainState = field(default_factory=TrainState)
    record: dict[str, Any] = field(default_factory=dict)
    """JSON values that every state keeps beside the training's own: the settings, the dataset."""

    memory_advice: str = ""
    """What the user can change when memory runs out, most effective first."""

    team: Team = field(default_factory=Team)
    """The processes that train this run together. Hooks belong to the first of them."""

    in_lockstep: bool = False
    """All processes have to make the same passes, so none breaks a window off by itself."""

    lead: Callable[[Order], None] = lambda order: None
    """Set by `lockstep.follow`: has the other processes do the same, while they wait for the first one."""

    stop_asked: Callable[[], bool] = lambda: False
    """Whether a signal asks for an end; read between micro-batches."""

    fetch_every: int = 1
    """Optimizer steps whose numbers stay on the device before they are fetched; 1: each step waits for its own."""

    settle: Callable[[], None] = lambda: None
    """Set by the loop: fetches the numbers of all steps so far from the device and gives them to the hooks."""

    log: Callable[[int, dict[str, float]], None] = lambda step, values: None
    """Shows numbers of a step, such as `{"validation/loss": 0.1}`, where the job's trackers draw curves."""

    report: dict[str, Any] = field(default_factory=dict)
    """JSON values that hooks add to run.json."""

    stop_reason: str | None = None
    """Set by a hook that asks for a stop."""

    goal_reached: str | None = None
    """Set by a hook when the run is complete before `steps`: why."""

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Inside the block all weights are those that are kept, after it their own values again, in all processes.

        What fails inside ends the run.
        """
        self.lead(hold_kept_weights)
        with self.kept_weights():
            yield
        # Not when it fails: the others may be in the middle of a pass, and would not hear it.
        self.lead(hold_own_weights)

    @contextmanager
    def kept_weights(self) -> Iterator[None]:
        """`evaluation` in this process alone."""
        with ExitStack() as stack:
            for role in self.roles.values():
                stack.enter_context(role.evaluation())
            yield

    @property
    def interrupted(self) -> bool:
        """Whether somebody asks for an end before the run is complete."""
        return self.stop_reason is not None or self.stop_asked()

    @property
    def stopping(self) -> bool:
        """Whether the loop should end at the next boundary."""
        return self.goal_reached is not None or self.interrupted

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train."""
        return self.goal_reached is not None or self.state.step >= self.steps
