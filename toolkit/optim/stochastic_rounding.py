"""Training bf16 weights without float32 copies of them, one parameter at a time:
updates in float32, rounded up or down at random.

bf16 has 8 significant bits: an update below 1/512 of a weight is lost when rounded to
the nearest number, every time. Rounded at random with the right odds it arrives in full
on average. Source: Zamirai et al. 2020, https://arxiv.org/abs/2010.06192, section 3.1;
Gupta et al. 2015, arXiv:1502.02551, eq. 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from toolkit.optim.optimizers import step_if, supports_found_inf
from toolkit.system.seeding import key
from toolkit.system.sharded_param import RowShard


class PerParameterStepper:
    """Steps single parameters of an optimizer whose step of a parameter depends on
    nothing but that parameter.

    During a step the optimizer has one parameter only. Its state stays in place and is
    saved as usual.

    >>> first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    >>> first.grad = second.grad = torch.ones(1)
    >>> PerParameterStepper(torch.optim.SGD([first, second], lr=0.25)).step(first)
    >>> first.item(), second.item()
    (0.75, 1.0)
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._group_of: dict[Tensor, int] = {
            parameter: index
            for index, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
        }

    def step(self, parameter: nn.Parameter, step_ok: Tensor | None = None) -> None:
        """The optimizer's step of `parameter` by its `grad`; all others stay as they
        are.

        step_ok: 0-dim bool on the device. Where it is false, parameter and state
        tensors stay as they are too; only what the optimizer counts on the host counts
        on. The host does not wait for it.
        """
        groups = self.optimizer.param_groups
        state = self.optimizer.state.get(parameter, {})
        group = groups[self._group_of[parameter]]
        for name, entry in state.items():
            # A loaded state lies where the parameter was then: of a swapped block in
            # CPU memory, where counters stay.
            moves = isinstance(entry, Tensor) and (entry.dim() or group.get("fused"))
            if moves and entry.device != parameter.device:
                state[name] = entry.to(parameter.device)
        self.optimizer.param_groups = [{**group, "params": [parameter]}]
        try:
            if step_ok is None:
                self.optimizer.step()
            elif supports_found_inf(self.optimizer):
                step_if(self.optimizer, step_ok)
            else:
                step_and_undo(self.optimizer, parameter, step_ok)
        finally:
            self.optimizer.param_groups = groups


@torch.no_grad()
def step_and_undo(
    optimizer: Optimizer, parameter: nn.Parameter, step_ok: Tensor
) -> None:
    """A step of an optimizer with one parameter. Where `step_ok` is false, weight and
    state tensors get back what they were, and a state that the step has made is
    zeros."""

    def state() -> dict[str, Tensor]:
        return {
            name: entry
            for name, entry in optimizer.state[parameter].items()
            if isinstance(entry, Tensor)
        }

    weight = parameter.clone()
    before = {name: tensor.clone() for name, tensor in state().items()}
    optimizer.step()
    torch.where(step_ok, parameter, weight, out=parameter.detach())
    for name, tensor in state().items():
        torch.where(
            step_ok, tensor, before.get(name, torch.zeros_like(tensor)), out=tensor
        )


ROUNDING_COUNT = "draws"
"""Entry of a parameter's state: how often it has been rounded."""


def stochastic_round_bf16(
    values: Tensor, random: torch.Generator, shard: RowShard | None = None
) -> Tensor:
    """float32 `values` as bf16, each its neighbour below or above; above with odds (x -
    below) / (above - below).

    The bf16 numbers are the float32 ones whose lower 16 bits are 0: a uniform number of
    16 bits is added to the pattern, and the lower half cut off. The mean over the draws
    is x; values that are not finite stay so. shard: the values are these rows of a
    tensor; they are rounded as within the whole, for which all numbers are drawn.
    """
    bits = values.view(torch.int32)
    shape = shard.shape if shard else values.shape
    noise = torch.randint(
        0, 1 << 16, shape, dtype=torch.int32, device=bits.device, generator=random
    )
    noise = noise[shard.start : shard.stop] if shard else noise
    rounded = noise.add_(bits).bitwise_and_(-(1 << 16)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values, out=rounded).to(
        torch.bfloat16
    )


class StochasticRoundingOptimizer:
    """An optimizer over bf16 parameters that steps each in float32 and rounds the
    result at random.

    Stands where an `Optimizer` would: same state, same groups. Only the parameter at
    its turn has a float32 copy. Each rounding has its own generator, on the parameter's
    device, keyed by parameter and number of the draw.

    >>> weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    >>> weight.grad = torch.ones_like(weight)
    >>> optimizer = StochasticRoundingOptimizer(
    ...     {"weight": weight},
    ...     build=lambda stand_ins: torch.optim.SGD(stand_ins.values(), lr=0.5),
    ...     seed=0,
    ... )
    >>> optimizer.step()
    >>> weight.data
    tensor([0.5000, 0.5000], dtype=torch.bfloat16)
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        build: Callable[[Mapping[str, nn.Parameter]], Optimizer],
        seed: int,
        shared_out: Mapping[str, RowShard] | None = None,
    ) -> None:
        """build: makes the float32 optimizer over stand-ins for the parameters, given
        by the same names.

        shared_out: parameters that are some rows of a weight, by name.
        """
        self.seed = seed
        self._parts = {
            parameter: (shared_out or {}).get(name)
            for name, parameter in parameters.items()
        }
        self._names = {parameter: name for name, parameter in parameters.items()}
        stand_ins = {
            name: nn.Parameter(torch.empty(0, dtype=torch.float32, device=p.device))
            for name, p in parameters.items()
        }
        self._stand_ins = {p: stand_ins[name] for name, p in parameters.items()}
        self.inner = build(stand_ins)
        self._single = PerParameterStepper(self.inner)

    @torch.no_grad()
    def step_one(self, parameter: nn.Parameter, step_ok: Tensor | None = None) -> None:
        """The step of one parameter by its `grad`. step_ok: as of
        `PerParameterStepper.step`."""
        assert parameter.grad is not None  # those without one are not stepped
        stand_in = self._stand_ins[parameter]
        stand_in.data = parameter.detach().float()
        stand_in.grad = parameter.grad.float()
        self._single.step(stand_in, step_ok)
        stand_in.grad = None
        state = self.inner.state[stand_in]
        state[ROUNDING_COUNT] = state.get(ROUNDING_COUNT, 0) + 1
        number = key(
            self.seed, "rounding", self._names[parameter], state[ROUNDING_COUNT]
        )
        random = torch.Generator(parameter.device).manual_seed(number)
        parameter.copy_(
            stochastic_round_bf16(stand_in.data, random, self._parts[parameter])
        )
        stand_in.data = stand_in.data.new_empty(0)

    def step(self) -> None:
        """The step of every parameter that has a gradient."""
        for parameter in self._stand_ins:
            if parameter.grad is not None:
                self.step_one(parameter)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Frees all gradients."""
        for parameter in self._stand_ins:
            parameter.grad = None

    # ------------------------------------------------------------ the rest of the
    # optimizer interface

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    @property
    def defaults(self) -> dict[str, Any]:
        return self.inner.defaults

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)
