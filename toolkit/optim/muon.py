"""Muon: matrices move along orthogonalised momentum, all other weights as with AdamW.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the scale of its
steps, with which learning rate and weight decay of AdamW fit: Liu et al. 2025,
https://arxiv.org/abs/2502.16982, eq. 4."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration, which brings singular values from (0, 1] near 1."""

ITERATIONS = 5

ADAMW_RMS = 0.2
"""Root mean square of AdamW's steps, in learning rates."""


class Muon(Optimizer):
    """Weights of two or more dimensions, flattened to matrices of their first one by
    all others, move by lr 0.2 sqrt(max(rows, columns)) orthogonal(g + momentum m),
    where m = momentum m + g; vectors as with AdamW.

    A convolution's kernel is such a matrix: its rows are the output channels.

    >>> weight = torch.nn.Parameter(torch.eye(4))
    >>> weight.grad = torch.eye(4)
    >>> _ = Muon([weight], lr=0.1, weight_decay=0.0).step()
    >>> bool((weight.diagonal() < 1).all())
    True
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        """momentum, betas: in [0, 1); betas and eps as in AdamW. Raises ValueError for
        a number out of range."""
        if (
            lr <= 0
            or weight_decay < 0
            or eps <= 0
            or not all(0 <= beta < 1 for beta in (momentum, *betas))
        ):
            raise ValueError(
                f"lr {lr} and eps {eps} above 0, weight_decay {weight_decay} from 0, momentum {momentum} and betas "
                f"{betas} in [0, 1) expected"
            )
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "betas": betas,
                "eps": eps,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; parameters without gradient stay. Returns the loss of `closure`,
        None without one.

        A parameter loses lr weight_decay of itself, and then lr times its direction.
        The direction of a parameter with two or more dimensions is orthogonalized.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                move = self._matrix_move if parameter.ndim >= 2 else self._vector_move
                direction = move(group, parameter, parameter.grad)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(
                    direction, alpha=group["lr"]
                )
        return loss

    def _matrix_move(
        self, group: dict[str, Any], parameter: Tensor, gradient: Tensor
    ) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        ahead = gradient.add(buffer, alpha=group["momentum"]).flatten(1)
        move: Tensor = (
            ADAMW_RMS * max(ahead.shape) ** 0.5 * orthogonal(ahead).view_as(parameter)
        )
        return move

    def _vector_move(
        self, group: dict[str, Any], parameter: Tensor, gradient: Tensor
    ) -> Tensor:
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = (
                torch.zeros_like(parameter),
                torch.zeros_like(parameter),
            )
        beta1, beta2 = group["betas"]
        state["step"] += 1
        count = float(state["step"])
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2)
        move: Tensor = (
            mean
            / (1 - beta1**count)
            / ((square / (1 - beta2**count)).sqrt() + group["eps"])
        )
        return move


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix [rows, columns] of the same singular vectors whose singular values are
    near 1 (0.7 to 1.2).

    Five Newton-Schulz iterations of a quintic polynomial, in the matrix's dtype. A
    matrix of zeros stays zero.

    >>> values = torch.linalg.svdvals(orthogonal(torch.diag(torch.tensor([3.0, 1.0]))))
    >>> bool(((values > 0.65) & (values < 1.25)).all())
    True
    """
    a, b, c = QUINTIC
    wide: Tensor = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
