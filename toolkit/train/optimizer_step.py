"""Roles (parameters with their optimizer), and how gradients become an optimizer step.

`StandardStep` steps when all gradients are complete. A strategy that steps in the last backward pass is another
subclass of `OptimizerStep`: the loop calls the same methods for all of them.

Nothing here waits for the device: whether the step is taken is a 0-dim bool tensor, and a skipped step leaves weights,
optimizer state and EMA exactly as they were.
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
    """How the gradients of an accumulation step are used. Methods in the order of their calls; one object per role."""

    def begin_accumulation(self, role: Role) -> None:
        """Called before the first backward pass of an accumulation step.

        Called again when an accumulation step that ran out of memory is repeated with split batches: a strategy that
        has updated parameters by then raises RunError. Not called for the trial of the largest batch.
        """

    def before_last_backward(self, role: Role, step: int, finite: Tensor) -> None:
        """Called before the backward pass of the accumulation step's last micro-batch.

        step: optimizer steps done. finite: whether all losses of the role are finite (0-dim bool on the device).
        Called again when a `TrainStep` makes several backward passes of one role.
        """

    def norm(self, role: Role) -> Tensor:
        """The norm of the gradients before clipping, 0-dim float32 on the device. The step is skipped where it is not
        finite.

        Called once per accumulation step, after the last backward pass.
        """
        raise NotImplementedError

    def step(self, role: Role, step: int, norm: Tensor, step_ok: Tensor) -> dict[str, Tensor]:
        """Takes the step where `step_ok`, updates the EMA and frees the gradients.

        step: optimizer steps done. norm: the result of `norm`. step_ok: whether losses and gradients of the role are
        finite (0-dim bool on the device). Returns 0-dim metrics, still on the device.
        """
        raise NotImplementedError

    def zero_grad(self, role: Role) -> None:
        """Frees the gradients of an aborted accumulation step (a stop, or out of memory)."""
        role.optimizer.zero_grad(set_to_none=True)


class StandardStep(OptimizerStep):
    """Accumulates the gradients of all parameters, clips them by their global norm, and steps once."""

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
    """`StandardStep` with sharded parameters: the norm is that of the full gradients."""

    def __init__(self, all_reduce_sum: Callable[[Sequence[Tensor]], None]) -> None:
        """all_reduce_sum: replaces tensors by their sums over the ranks (`ProcessGroup.all_reduce_sum`)."""
        self.all_reduce_sum = all_reduce_sum

    def norm(self, role: Role) -> Tensor:
        square = _norm(role, role.sharded.keys() & role.parameters.keys()).square()
        self.all_reduce_sum([square])
        return torch.sqrt(square + _norm(role, role.parameters.keys() - role.sharded.keys()).square())


@dataclass
class Role:
    """A set of parameters that is trained together, with its optimizer, schedule and EMA."""

    parameters: dict[str, nn.Parameter]
    optimizer: AnyOptimizer
    lr: float
    """Base learning rate; the schedule multiplies it."""

    schedule: Schedule
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0: no clipping."""

    ema: Ema | None = None
    group_lrs: dict[str, float] = field(default_factory=dict)
    """Name -> base learning rate of each parameter group, in the optimizer's order; empty: one group, at `lr`."""

    every: int = 1
    """It is trained in the first optimizer step and then in each `every`-th one."""

    optimizer_step: OptimizerStep = field(default_factory=StandardStep)
    """How gradients become a step."""

    after_step: Callable[[Tensor], dict[str, Tensor]] = lambda step_ok: {}
    """Post-processing of the weights after each step (`Network.after_step`)."""

    sharded: Mapping[str, RowShard] = field(default_factory=dict)
    """Sharded parameters by name (`Network.sharded_params`)."""

    @property
    def size(self) -> int:
        """Bytes of its full parameters, all shards included."""
        return sum(prod(self.shape_of(name)) * p.element_size() for name, p in self.parameters.items())

    @property
    def state_bytes(self) -> int:
        """Bytes of the present optimizer state; 0 before its first step."""
        tensors, _ = state_tensors(self.optimizer, list(self.parameters))
        return sum(tensor.nbytes for tensor in tensors.values())

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter, all shards included."""
        return self.sharded[name].shape if name in self.sharded else tuple(self.parameters[name].shape)

    def learns_at(self, step: int) -> bool:
        """Whether it is trained in the next step when `step` are done."""
        return step % self.every == 0

    def lr_at(self, step: int) -> float:
        """The base learning rate of the next step when `step` are done."""
        return self.lr * self.schedule(step)

    def set_learning_rates(self, step: int) -> None:
        """Sets the learning rate of each parameter group for the next step when `step` are done."""
        groups = self.optimizer.param_groups
        bases = self.group_lrs.values() or [self.lr] * len(groups)
        for group, base in zip(groups, bases, strict=True):
            group["lr"] = base * self.schedule(step)

    def learning_rates(self) -> dict[str, float]:
        """The learning rates of the step just done beyond `lr_at`, by name.

        Those of several parameter groups, and those that an optimizer estimates (Prodigy's and D-Adaptation's `d`).
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
        """The raw weights, or `eval_weights`."""
        return dict(self.parameters) if raw else self.eval_weights()

    def using_eval_weights(self) -> AbstractContextManager[None]:
        """Swaps `eval_weights` into the parameters inside the block, and restores the raw weights after it."""
        return self.ema.applied() if self.ema else eval_mode(self.optimizer)


def post_step(role: Role, step_ok: Tensor) -> dict[str, Tensor]:
    """What follows the optimizer in every strategy: the network's post-processing, then the EMA of its result."""
    numbers = role.after_step(step_ok)
    if role.ema:
        role.ema.update(step_ok)
    return numbers


def clip_(gradients: Sequence[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scales gradients in place so that their norm, now `norm` (0-dim), is at most `max_norm`."""
    if gradients:
        factor = torch.where(norm > max_norm, max_norm / (norm + CLIP_EPSILON), 1.0)
        torch._foreach_mul_(list(gradients), factor)


def _norm(role: Role, names: Collection[str]) -> Tensor:
    """Norm of the gradients of these parameters, 0-dim float32."""
    gradients = [p.grad for name, p in role.parameters.items() if name in names and p.grad is not None]
    if not gradients:
        return torch.zeros((), device=next(iter(role.parameters.values())).device)
    dtype = torch.promote_types(gradients[0].dtype, torch.float32)
    norms = torch._foreach_norm(gradients, 2.0, dtype)
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


def _gradients(role: Role) -> list[Tensor]:
    return [p.grad for p in role.parameters.values() if p.grad is not None]
