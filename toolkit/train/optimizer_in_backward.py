"""Optimizer step in the backward pass: each parameter is updated as soon as its gradient is complete, which is then
freed.

At most one gradient is in memory at a time (with accumulation all are, until the last micro-batch). The weights are
those of `StandardStep`, bit for bit, as long as nothing is clipped. Two things differ, because the norm of all
gradients is known only after the parameters were updated:

- `max_grad_norm` limits the gradient of each parameter separately;
- where a gradient is not finite although the losses are, its parameter stays as it is, but the others are updated.
  The step still counts as skipped.

The host waits for the device once per parameter, to know whether the gradient is finite.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import torch
from torch import Tensor, nn

from toolkit.errors import RunError
from toolkit.train.optimizer_step import OptimizerStep, Role, clip_, post_step

Mode = Literal["keep", "drop", "step"]
"""What to do with a finished gradient: keep it, drop it, or step."""


class OptimizerInBackward(OptimizerStep):
    """Steps each parameter in the backward pass of an accumulation step's last micro-batch."""

    def __init__(
        self, parameters: Collection[nn.Parameter], step_one: Callable[[nn.Parameter], None], accumulates: bool
    ) -> None:
        """step_one: the optimizer's step of one parameter. accumulates: whether accumulation steps have several
        micro-batches.
        """
        self.parameters = tuple(parameters)
        self.step_one = step_one
        # A trial batch has to take as much memory as a real one.
        self._idle: Mode = "keep" if accumulates else "drop"
        self._mode: Mode = self._idle
        self._max_norm = 0.0
        self._norms: list[float] = []
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._complete)

    def begin_accumulation(self, role: Role) -> None:
        if self._norms:
            raise RunError(
                "memory ran out in the middle of a fused backward pass, when some weights had moved already: the step "
                "cannot be repeated with smaller batches. Start the job again with a smaller train.batch_size or "
                "resolution; it resumes from the last save."
            )
        self._mode = "keep"

    def before_last_backward(self, role: Role, step: int, finite: Tensor) -> None:
        if self._mode != "keep":
            raise RunError("fused_backward_pass: this trainer makes several backward passes of one role. Leave it out.")
        self._max_norm = role.max_grad_norm
        role.set_learning_rates(step)
        self._mode = "step" if finite.item() else "drop"

    def _complete(self, parameter: nn.Parameter) -> None:
        if self._mode == "step":
            self._step(parameter)
        if self._mode != "keep":
            parameter.grad = None

    @torch.no_grad()
    def _step(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None  # autograd has just completed it
        norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
        self._norms.append(norm.item())
        if torch.isfinite(norm):
            if self._max_norm:
                clip_([parameter.grad], norm, self._max_norm)
            self.step_one(parameter)

    def norm(self, role: Role) -> Tensor:
        """Norm of all gradients before clipping; 0 when the losses were not finite and nothing was updated."""
        for parameter in self.parameters:
            if parameter.grad is not None:  # a parameter that the last micro-batch did not use
                self._complete(parameter)
        return torch.linalg.vector_norm(torch.tensor(self._norms or [0.0], device=self.parameters[0].device))

    def step(self, role: Role, step: int, norm: Tensor, step_ok: Tensor) -> dict[str, Tensor]:
        numbers = post_step(role, step_ok)
        self.zero_grad(role)
        self._norms = []
        return numbers

    def zero_grad(self, role: Role) -> None:
        super().zero_grad(role)
        self._mode = self._idle
