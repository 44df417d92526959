"""Roles (parameters with their optimizer), and how gradients become an optimizer step.

`StandardStep` steps when all gradients are complete, `OptimizerInBackward` updates each
parameter in the last backward pass. The loop calls the same methods for every
`OptimizerStep`.

Nothing in a standard step waits for the device: whether the step is taken is a 0-dim
bool tensor, and a skipped step leaves weights, optimizer state and EMA exactly as they
were.

`roles` builds them, the loop calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from toolkit.errors import RunError
from toolkit.optim.ema import Ema
from toolkit.optim.optimizers import (
    AnyOptimizer,
    eval_mode,
    has_eval_mode,
    set_rate,
    state_tensors,
    step_if,
)
from toolkit.optim.schedules import Schedule
from toolkit.system.device import begin_copy_to_host, to_device
from toolkit.system.sharded_param import RowShard

CLIP_EPSILON = 1e-6
"""Added to the norm that gradients are divided by, as `torch.nn.utils.clip_grad_norm_`
does."""


class OptimizerStep:
    """How the gradients of an accumulation step are used. Methods in the order of their
    calls; one object per role.

    Example::

        norm = role.optimizer_step.norm(role)
        step_ok = losses_are_finite & torch.isfinite(norm)
        numbers = role.optimizer_step.step(role, steps_done, norm, step_ok)
    """

    in_backward = False
    """Whether parameters are updated in the backward pass."""

    @property
    def has_moved(self) -> bool:
        """Whether a parameter was updated in an accumulation step that is not
        complete."""
        return False

    def begin_accumulation(self, role: Role) -> None:
        """Called before the first backward pass of an accumulation step.

        Called again when an accumulation step that ran out of memory is repeated with
        split batches: a strategy that has updated parameters by then raises RunError.
        Not called for the trial of the largest batch.
        """

    def before_last_backward(self, role: Role, step: int, finite: Tensor) -> None:
        """Called before the backward pass of the accumulation step's last micro-batch.

        step: optimizer steps done. finite: whether all losses of the role are finite
        (0-dim bool on the device). Called again when a `TrainStep` makes several
        backward passes of one role.
        """

    def norm(self, role: Role) -> Tensor:
        """The norm of the gradients before clipping, 0-dim float32 on the device. The
        step is skipped where it is not finite.

        Called once per accumulation step, after the last backward pass.
        """
        raise NotImplementedError

    def step(
        self, role: Role, step: int, norm: Tensor, step_ok: Tensor
    ) -> dict[str, Tensor]:
        """Takes the step where `step_ok`, updates the EMA and frees the gradients.

        step: optimizer steps done. norm: the result of `norm`. step_ok: whether losses
        and gradients of the role are finite (0-dim bool on the device). Returns 0-dim
        metrics, still on the device.
        """
        raise NotImplementedError

    def zero_grad(self, role: Role) -> None:
        """Frees the gradients of an aborted accumulation step (a stop, or out of
        memory)."""
        role.optimizer.zero_grad(set_to_none=True)


class StandardStep(OptimizerStep):
    """Accumulates the gradients of all parameters, clips them by their global norm, and
    steps once.

    >>> weight = nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> optimizer = torch.optim.SGD([weight], lr=0.1)
    >>> role = Role({"weight": weight}, optimizer, 0.1, schedule=lambda step: 1.0)
    >>> StandardStep().norm(role)
    tensor(5.)
    """

    def norm(self, role: Role, names: Collection[str] | None = None) -> Tensor:
        """The Euclidean norm of the gradients, 0-dim on the device; 0 without a
        gradient. names: of the parameters whose gradients count; None: all."""
        gradients = {
            name: p.grad
            for name, p in role.parameters.items()
            if p.grad is not None and (names is None or name in names)
        }
        if not gradients:
            return torch.zeros((), device=next(iter(role.parameters.values())).device)
        first = next(iter(gradients.values()))
        norms = torch._foreach_norm(
            list(gradients.values()),
            2.0,
            torch.promote_types(first.dtype, torch.float32),
        )
        return _total_norm(role, dict(zip(gradients, norms, strict=True)))

    def step(
        self, role: Role, step: int, norm: Tensor, step_ok: Tensor
    ) -> dict[str, Tensor]:
        if role.max_grad_norm:
            clip_(
                [p.grad for p in role.parameters.values() if p.grad is not None],
                norm,
                role.max_grad_norm,
            )
        role.set_learning_rates(step)
        step_if(role.optimizer, step_ok)
        numbers = post_step(role, step_ok)
        self.zero_grad(role)
        return numbers


class ShardedStep(StandardStep):
    """`StandardStep` with sharded parameters: the norm is computed over the full
    gradients.

    Example::

        role.optimizer_step = ShardedStep(process_group.all_reduce_sum)
    """

    def __init__(self, all_reduce_sum: Callable[[Sequence[Tensor]], None]) -> None:
        """all_reduce_sum: replaces tensors by their sums over the ranks
        (`ProcessGroup.all_reduce_sum`)."""
        self.all_reduce_sum = all_reduce_sum

    def norm(self, role: Role, names: Collection[str] | None = None) -> Tensor:
        square = (
            super().norm(role, role.sharded.keys() & role.parameters.keys()).square()
        )
        self.all_reduce_sum([square])
        return torch.sqrt(
            square
            + super().norm(role, role.parameters.keys() - role.sharded.keys()).square()
        )


class ZeroGradients:
    """For how many optimizer steps in a row the gradient of each parameter was zero, or
    there was none.

    The norms of the gradients are there already, and the counts stay on the device:
    counting waits for nothing.

    >>> zero = ZeroGradients(["down", "up"])
    >>> zero.add(("down",), norms_P=torch.tensor([0.5]))
    >>> zero.steps()
    {'down': 0, 'up': 1}
    """

    def __init__(self, names: Iterable[str]) -> None:
        """names: of the parameters that are counted."""
        self.names = tuple(names)
        self._with_gradient: tuple[str, ...] = ()
        self._places: Tensor | None = None
        self._norms_P: Tensor | None = None
        self._steps_P: Tensor | None = None
        self._copied: Callable[[], Tensor] | None = None

    def add(self, with_gradient: tuple[str, ...], norms_P: Tensor) -> None:
        """Takes one optimizer step. with_gradient: the parameters that have a gradient.
        norms_P: the norms of these gradients, in their order, on the device. All other
        parameters count as having a gradient of 0."""
        if self._places is None or with_gradient != self._with_gradient:
            # Copied to the device once, or where a layer is used now and then: module
            # dropout.
            places = {name: place for place, name in enumerate(self.names)}
            self._with_gradient = with_gradient
            self._places = to_device(
                torch.tensor([places.get(n, len(places)) for n in with_gradient]),
                norms_P.device,
            )
        if self._norms_P is None or self._steps_P is None:
            # The last entry is for all other parameters.
            self._norms_P = norms_P.new_zeros(len(self.names) + 1)
            self._steps_P = torch.zeros(
                len(self.names) + 1, dtype=torch.int32, device=norms_P.device
            )
        self._norms_P.zero_().index_copy_(0, self._places, norms_P)
        self._steps_P.add_(1).mul_(self._norms_P == 0)

    def steps(self) -> dict[str, int]:
        """By the parameter's name: the steps in a row, up to the last one, in which its
        gradient was 0. On a GPU they are those of the last call, whose copy has arrived
        meanwhile: nothing waits. Empty as long as there are none."""
        if self._steps_P is None:
            return {}
        copied = self._copied
        self._copied = begin_copy_to_host(self._steps_P)
        if not self._steps_P.is_cuda:
            copied = self._copied
        return dict(zip(self.names, copied().tolist(), strict=False)) if copied else {}

    def is_absent(self, name: str) -> bool:
        """Whether a parameter had no gradient at all in the last step."""
        return name not in self._with_gradient


@dataclass
class Role:
    """A set of parameters that is trained together, with its optimizer, schedule and
    EMA.

    >>> weight = nn.Parameter(torch.zeros(2, 3))
    >>> optimizer = torch.optim.SGD([weight], lr=0.1)
    >>> role = Role({"weight": weight}, optimizer, 0.1, schedule=lambda step: 1.0)
    >>> role.size  # bytes
    24
    """

    parameters: dict[str, nn.Parameter]
    optimizer: AnyOptimizer
    lr: float
    """Base learning rate; the schedule multiplies it."""

    schedule: Schedule
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0: no clipping."""

    ema: Ema | None = None
    group_lrs: dict[str, float] = field(default_factory=dict)
    """Name -> base learning rate of each parameter group, in the optimizer's order;
    empty: one group, at `lr`."""

    every: int = 1
    """It is trained in the first optimizer step and then in each `every`-th one."""

    optimizer_step: OptimizerStep = field(default_factory=StandardStep)
    """How gradients become a step."""

    after_step: Callable[[Tensor], dict[str, Tensor]] = lambda step_ok: {}
    """Post-processing of the weights after each step (`Network.after_step`)."""

    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that no gradient changes, by name: part of a checkpoint, not of the EMA.
    `after_step` may change them."""

    sharded: Mapping[str, RowShard] = field(default_factory=dict)
    """Sharded parameters by name (`Network.sharded_params`)."""

    zero_gradients: ZeroGradients | None = None
    """Counted where a callback has asked for it; not by `ShardedStep`, whose gradients
    are parts."""

    @property
    def size(self) -> int:
        """Bytes of its full parameters and its buffers, all shards included."""
        return sum(
            prod(self.shape_of(name)) * tensor.element_size()
            for name, tensor in self.saved_weights.items()
        )

    @property
    def state_bytes(self) -> int:
        """Bytes of the present optimizer state; 0 before its first step."""
        tensors, _ = state_tensors(self.optimizer, list(self.parameters))
        return sum(tensor.nbytes for tensor in tensors.values())

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter or buffer, all shards included. Raises KeyError for
        another name."""
        if name in self.sharded:
            return self.sharded[name].shape
        return tuple(self.saved_weights[name].shape)

    @property
    def saved_weights(self) -> dict[str, Tensor]:
        """The parameters and buffers, as they are in a checkpoint."""
        return {**self.parameters, **self.buffers}

    def set_learning_rates(self, step: int) -> None:
        """Sets the learning rate of each parameter group for the next step when `step`
        are done."""
        groups = self.optimizer.param_groups
        bases = self.group_lrs.values() or [self.lr] * len(groups)
        for group, base in zip(groups, bases, strict=True):
            set_rate(group, base * self.schedule(step))

    def learning_rates(self) -> dict[str, float]:
        """The further learning rates of the step just done, by name.

        The rates of several parameter groups, and the rates that an optimizer estimates
        (Prodigy's and D-Adaptation's `d`).
        """
        groups = dict(
            zip(
                self.group_lrs or [""],
                self.optimizer.param_groups,
                strict=bool(self.group_lrs),
            )
        )
        given = {name: float(group["lr"]) for name, group in groups.items() if name}
        estimated = {}
        for name, group in groups.items():
            if "d" in group:
                rate = float(group["d"]) * float(group["lr"])
                estimated[f"d*lr/{name}".rstrip("/")] = rate
        return given | estimated

    def eval_weights(self) -> dict[str, torch.Tensor]:
        """The weights that samples and saved files use: the EMA where there is one,
        else the average of a schedule-free optimizer, else the raw weights.

        Only the average of a schedule-free optimizer is a copy; the others change with
        the next step.
        """
        if self.ema:
            return self.ema.averages
        if not has_eval_mode(self.optimizer):
            return {name: p.detach() for name, p in self.parameters.items()}
        with eval_mode(self.optimizer):
            return {name: p.detach().clone() for name, p in self.parameters.items()}

    def weights(self, raw: bool) -> dict[str, torch.Tensor]:
        """The raw weights, or `eval_weights`. The raw ones are the parameters
        themselves, not copies."""
        return dict(self.parameters) if raw else self.eval_weights()

    def using_eval_weights(self) -> AbstractContextManager[None]:
        """Swaps `eval_weights` into the parameters inside the block, and restores the
        raw weights after it. Without an EMA or a schedule-free optimizer it changes
        nothing."""
        return self.ema.applied() if self.ema else eval_mode(self.optimizer)


def post_step(role: Role, step_ok: Tensor) -> dict[str, Tensor]:
    """The work after the optimizer in every strategy: the network's post-processing,
    then the average of its result."""
    numbers = role.after_step(step_ok)
    if role.ema:
        role.ema.update(step_ok)
    return numbers


def clip_(gradients: Sequence[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scales gradients in place so that their norm, now `norm` (0-dim), is at most
    `max_norm`."""
    if gradients:
        factor = torch.where(norm > max_norm, max_norm / (norm + CLIP_EPSILON), 1.0)
        torch._foreach_mul_(list(gradients), factor)


def _total_norm(role: Role, norms: Mapping[str, Tensor]) -> Tensor:
    """Norm of all gradients, from the norm of each; empty ones are counted where that
    is asked for."""
    device = next(iter(norms.values())).device
    norms_P = torch.stack([norm.to(device) for norm in norms.values()])
    if role.zero_gradients:
        role.zero_gradients.add(tuple(norms), norms_P)
    norm: Tensor = torch.linalg.vector_norm(norms_P)
    return norm


def _answers_at_once(parameter: Tensor) -> bool:
    """Whether the host need not wait for results on the parameter's device."""
    return parameter.device.type == "cpu"


Mode = Literal["keep", "drop", "step"]
"""What to do with a finished gradient: keep it, drop it, or step."""


class OptimizerInBackward(OptimizerStep):
    """Steps each parameter in the backward pass of an accumulation step's last
    micro-batch, as soon as its gradient is complete, then frees the gradient.

    At most one gradient is in memory at a time (with accumulation all are, until the
    last micro-batch). The weights are the same as with `StandardStep`, bit for bit,
    where nothing is clipped. Two things differ, because the norm of all gradients is
    known only after the parameters were updated:

    - `max_grad_norm` limits the gradient of each parameter separately;
    - where a gradient is not finite although the losses are, its parameter stays as it
      is, but the others are updated. The step still counts as skipped.

    The host does not wait for the device.

    Example::

        role.optimizer_step = step_in_backward(role, accumulates=False)
    """

    in_backward = True

    def __init__(
        self,
        parameters: Collection[nn.Parameter],
        step_one: Callable[[nn.Parameter, Tensor | None], None],
        accumulates: bool,
    ) -> None:
        """step_one: the optimizer's step of one parameter where a 0-dim bool on the
        device says so, or there is none. accumulates: whether accumulation steps have
        several micro-batches.
        """
        self.parameters = tuple(parameters)
        self.step_one = step_one
        # A trial batch has to take as much memory as a real one.
        self._idle: Mode = "keep" if accumulates else "drop"
        self._mode: Mode = self._idle
        self._max_norm = 0.0
        self._finite = torch.tensor(False)
        self._norms: dict[nn.Parameter, Tensor] = {}
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._complete)

    @property
    def has_moved(self) -> bool:
        return bool(self._norms)

    def begin_accumulation(self, role: Role) -> None:
        if self.has_moved:
            raise RunError(
                "memory ran out in the middle of a fused backward pass, when some weights had moved already: the step "
                "cannot be repeated with smaller batches. Start the job again with a smaller train.batch_size or "
                "resolution; it resumes from the last save."
            )
        self._mode = "keep"

    def before_last_backward(self, role: Role, step: int, finite: Tensor) -> None:
        if self._mode != "keep":
            raise RunError(
                "fused_backward_pass: this trainer makes several backward passes of one role. Leave it out."
            )
        self._max_norm = role.max_grad_norm
        role.set_learning_rates(step)
        self._mode = "step"
        self._finite = finite

    def _complete(self, parameter: nn.Parameter) -> None:
        if self._mode == "step":
            self._step(parameter)
        if self._mode != "keep":
            parameter.grad = None

    @torch.no_grad()
    def _step(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None  # autograd has just completed it
        norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
        self._norms[parameter] = norm
        if self._max_norm:
            clip_([parameter.grad], norm, self._max_norm)
        step_ok = self._finite & torch.isfinite(norm)
        if not _answers_at_once(parameter):
            self.step_one(parameter, step_ok)
        elif step_ok.item():
            self.step_one(parameter, None)

    def norm(self, role: Role) -> Tensor:
        """Norm of all gradients before clipping."""
        for parameter in self.parameters:
            # The last micro-batch did not use this parameter.
            if parameter.grad is not None:
                self._complete(parameter)
        if not self._norms:
            return torch.zeros((), device=self.parameters[0].device)
        names = {parameter: name for name, parameter in role.parameters.items()}
        return _total_norm(
            role, {names[parameter]: norm for parameter, norm in self._norms.items()}
        )

    def step(
        self, role: Role, step: int, norm: Tensor, step_ok: Tensor
    ) -> dict[str, Tensor]:
        numbers = post_step(role, step_ok)
        self.zero_grad(role)
        self._norms = {}
        return numbers

    def zero_grad(self, role: Role) -> None:
        super().zero_grad(role)
        self._mode = self._idle
