"""Loss scaling for float16: losses are scaled up before the backward pass, so that small gradients do not underflow,
and gradients are scaled down after it.

The rule is that of `torch.amp.GradScaler`, but the host never waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

START, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000


class LossScaler:
    """The loss scale: halved when a gradient is not finite, doubled after INTERVAL good steps in a row."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.scale = torch.full((), START, device=device)
        self._good_steps = torch.zeros((), dtype=torch.int64, device=device)

    def unscale_(self, gradients: Sequence[Tensor]) -> None:
        """Divides gradients of scaled losses by the scale, in place."""
        if gradients:
            torch._foreach_mul_(list(gradients), 1 / self.scale)

    def update(self, finite: Tensor) -> None:
        """Updates the scale after an optimizer step. finite: whether all gradients were finite (0-dim bool)."""
        finite = finite.to(self.scale.device)
        good_steps = torch.where(finite, self._good_steps + 1, 0)
        grows = good_steps == INTERVAL
        grown = torch.where(grows & torch.isfinite(self.scale * GROWTH), self.scale * GROWTH, self.scale)
        self.scale = torch.where(finite, grown, self.scale * BACKOFF)
        self._good_steps = torch.where(grows, 0, good_steps)

    def state_dict(self) -> dict[str, Any]:
        """JSON values; waits for the device."""
        return {"scale": float(self.scale), "good_steps": int(self._good_steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a `state_dict`."""
        self.scale.fill_(state["scale"])
        self._good_steps.fill_(state["good_steps"])
