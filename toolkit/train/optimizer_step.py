"""The weights of a role, and how the gradients of an accumulation step become one step of them.

`StandardStep` steps when all gradients are there. A strategy that steps within the last backward pass is one more
class: the loop calls the same four moments of every role's `update` and knows no kinds.

Nothing here waits for the device: whether the step may be taken is a flag there (0-dim bool), and a step that may not
be taken leaves weights, optimizer state and average exactly as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from toolkit.optim.ema import Ema
from toolkit.optim.optimizers import eval_mode, has_eval_mode, state_tensors
from toolkit.optim.schedules import Schedule
from toolkit.optim.skip_step import AnyOptimizer, step_if
from toolkit.sharded_param import RowShard

CLIP_EPSILON = 1e-6
"""Added to the norm that gradients are divided by, as `torch.nn.utils.clip_grad_norm_` does."""


class OptimizerStep:
    """The moments of one accumulation step, in the order of the methods. One object per role; state between them is
    its own.
    """

    def begin_accumulation(self, role: Role) -> None:
        """Before the first backward pass of an accumulation step.

        Called again when an accumulation step that ran out of memory is repeated in halves: a strategy that has
        changed weights by then raises RunError. Not called when the largest batch is only tried.
        """

    def before_last_backward(self, role: Role, step: int, finite: Tensor) -> None:
        """Before the backward pass of the accumulation step's last micro-batch.

        done: optimizer steps before this one. finite: whether all losses of the role are numbers (0-dim bool on the
        device). Called again when a `TrainStep` makes several passes of one role.
        """

    def norm(self, role: Role) -> Tensor:
        """The norm of the accumulation step's gradients before clipping, 0-dim float32 on the device; not finite
        stops the step.

        Called once per accumulation step, after the last backward pass.
        """
        raise NotImplementedError

    def step(self, role: Role, step: int, norm: Tensor, step_ok: Tensor) -> dict[str, Tensor]:
        """Takes the step where `taken`, moves the average and lets the gradients go.

        done: optimizer steps before this one. norm: what `norm` gave. taken: 0-dim bool on the device: losses
        and gradients of the role are finite. Returns 0-dim numbers worth logging, still on the device.
        """
        raise NotImplementedError

    def zero_grad(self, role: Role) -> None:
        """Lets the gradients of an accumulation step go that is not finished: a stop, or memory that ran out."""
        role.optimizer.zero_grad(set_to_none=True)


class StandardStep(OptimizerStep):
    """Accumulates the gradients of all weights, clips them by their common norm, and steps once."""

    def norm(self, role: Role) -> Tensor:
        return _norm(role, role.parameters)

    def step(self, role: Role, step: int, norm: Tensor, step_ok: Tensor) -> dict[str, Tensor]:
        if role.max_grad_norm:
            clip_(_gradients(role), norm, role.max_grad_norm)
        role.set_learning_rates(step)
        step_if(role.optimizer, step_ok)
        numbers = post_step(role, step_ok)
        self.zero_grad(role)
        return numbers


class ShardedStep(StandardStep):
    """`StandardStep` where processes share out some of the weights: the norm is that of the rows of all."""

    def __init__(self, all_reduce_sum: Callable[[Sequence[Tensor]], None]) -> None:
        """add_up: replaces tensors by their sums over the processes (`ProcessGroup.all_reduce_sum`)."""
        self.add_up = all_reduce_sum

    def norm(self, role: Role) -> Tensor:
        square = _norm(role, role.sharded.keys() & role.parameters.keys()).square()
        self.add_up([square])
        return torch.sqrt(square + _norm(role, role.parameters.keys() - role.sharded.keys()).square())


@dataclass
class Role:
    """One set of weights that is trained together, with what trains it."""

    parameters: dict[str, nn.Parameter]
    optimizer: AnyOptimizer
    lr: float
    """Base learning rate; the schedule gives a factor of it."""

    schedule: Schedule
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""

    ema: Ema | None = None
    group_lrs: dict[str, float] = field(default_factory=dict)
    """Name -> base learning rate of each group of the optimizer, in its order; empty: one group, at `lr`."""

    every: int = 1
    """It learns in every so many optimizer steps: the first, and then each `every`-th."""

    optimizer_step: OptimizerStep = field(default_factory=StandardStep)
    """How gradients become a step."""

    after_step: Callable[[Tensor], dict[str, Tensor]] = lambda step_ok: {}
    """What the network does to its weights after each step that is `taken` (`Network.after_step`)."""

    sharded: Mapping[str, RowShard] = field(default_factory=dict)
    """Parameters of which this process has some rows only, by their names (`Network.sharded_params`)."""

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
        return self.sharded[name].shape if name in self.sharded else tuple(self.parameters[name].shape)

    def learns_at(self, step: int) -> bool:
        """Whether it takes part in the next step when `step` are done."""
        return step % self.every == 0

    def lr_at(self, step: int) -> float:
        """The base learning rate of the next step when `step` are done."""
        return self.lr * self.schedule(step)

    def set_learning_rates(self, step: int) -> None:
        """Gives each group of the optimizer its learning rate of the next step when `step` are done."""
        groups = self.optimizer.param_groups
        bases = self.group_lrs.values() or [self.lr] * len(groups)
        for group, base in zip(groups, bases, strict=True):
            group["lr"] = base * self.schedule(step)

    def learning_rates(self) -> dict[str, float]:
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

    def eval_weights(self) -> dict[str, torch.Tensor]:
        """The weights that samples and saved files use: the EMA where there is one, else the raw weights."""
        if self.ema:
            return self.ema.averages
        if not has_eval_mode(self.optimizer):
            return {name: p.detach() for name, p in self.parameters.items()}
        with eval_mode(self.optimizer):
            return {name: p.detach().clone() for name, p in self.parameters.items()}

    def weights(self, raw: bool) -> dict[str, torch.Tensor]:
        """`eval_weights`, or the weights as they are."""
        return dict(self.parameters) if raw else self.eval_weights()

    def using_eval_weights(self) -> AbstractContextManager[None]:
        """Swaps `eval_weights` into the parameters inside the block, and restores the raw weights after it."""
        return self.ema.applied() if self.ema else eval_mode(self.optimizer)


def post_step(role: Role, step_ok: Tensor) -> dict[str, Tensor]:
    """What follows the optimizer in every strategy: the network's own rule, then the average of what it left."""
    numbers = role.after_step(step_ok)
    if role.ema:
        role.ema.update(step_ok)
    return numbers


def clip_(gradients: Sequence[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scales gradients down in place so that their norm, now `norm` (0-dim), is at most `most`."""
    if gradients:
        factor = torch.where(norm > max_norm, max_norm / (norm + CLIP_EPSILON), 1.0)
        torch._foreach_mul_(list(gradients), factor)


def _norm(role: Role, names: Collection[str]) -> Tensor:
    """Of the gradients of these parameters, 0-dim float32."""
    gradients = [p.grad for name, p in role.parameters.items() if name in names and p.grad is not None]
    if not gradients:
        return torch.zeros((), device=next(iter(role.parameters.values())).device)
    wide = torch.promote_types(gradients[0].dtype, torch.float32)
    norms = torch._foreach_norm(gradients, 2.0, wide)
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


def _gradients(role: Role) -> list[Tensor]:
    return [p.grad for p in role.parameters.values() if p.grad is not None]
