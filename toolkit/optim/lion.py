"""Lion: each number of a weight moves by the learning rate, in the direction of the
sign of an average of gradients.

Source: Chen et al. 2023, https://arxiv.org/abs/2302.06675, algorithm 2."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lion(Optimizer):
    """With m the moment, g the gradient: c = b1 m + (1 - b1) g; p -= lr (sign(c) +
    decay p); m = b2 m + (1 - b2) g.

    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> weight.grad = torch.tensor([0.1, -30.0])
    >>> _ = Lion([weight], lr=0.25).step()
    >>> weight.data
    tensor([0.7500, 1.2500])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
    ) -> None:
        """betas: in [0, 1]. decoupled_weight_decay: each step a weight loses
        `weight_decay` of itself, times the share of `lr` that the schedule leaves, as
        lion-pytorch's argument of this name; else `weight_decay` times the rate.

        Raises ValueError for a number out of its range.
        """
        if lr <= 0 or weight_decay < 0 or not all(0 <= beta <= 1 for beta in betas):
            raise ValueError(
                f"lr {lr} above 0, weight_decay {weight_decay} from 0, betas {betas} in [0, 1] expected"
            )
        super().__init__(
            params, {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        )
        self._decay_unit = lr if decoupled_weight_decay else 1.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; parameters without gradient stay. Returns the loss of `closure`,
        None without one.

        With gradient g and moment m: p := (1 - lr weight_decay) p - lr sign(beta1 m +
        (1 - beta1) g), then m := beta2 m + (1 - beta2) g. `decoupled_weight_decay`
        divides the rate in the first factor by the initial `lr`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            keep = 1 - lr / self._decay_unit * group["weight_decay"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "exp_avg" not in state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                moment = state["exp_avg"]
                direction = moment.lerp(parameter.grad, 1 - beta1).sign_()
                parameter.mul_(keep).sub_(direction, alpha=lr)
                moment.lerp_(parameter.grad, 1 - beta2)
        return loss
