"""Optimizer steps that are skipped by a flag on the device, without the host waiting for it."""

from __future__ import annotations

from typing import Any, Protocol, TypeGuard

from torch import Tensor
from torch.optim import Adam, AdamW


class AnyOptimizer(Protocol):
    """The interface of an optimizer, as `torch.optim.Optimizer` has it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    @property
    def defaults(self) -> dict[str, Any]: ...

    def step(self) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


HAS_FOUND_INF = (Adam, AdamW)
"""Optimizers whose fused implementation supports `found_inf`."""


def supports_found_inf(optimizer: AnyOptimizer) -> TypeGuard[Adam]:
    """Whether the optimizer can skip a step without the host waiting for the flag.

    torch's fused Adam and AdamW do, by the `found_inf` that `torch.amp.GradScaler` gives them: their kernel returns
    before it changes anything, and the step count is taken back. (Fused SGD would leave its first momentum unset.)
    All others count steps on the host.
    """
    return type(optimizer) in HAS_FOUND_INF and all(group["fused"] for group in optimizer.param_groups)


def step_if(optimizer: AnyOptimizer, step_ok: Tensor) -> None:
    """`optimizer.step()` where `step_ok` (0-dim bool); else parameters and state stay as they are, bit for bit.

    Without `found_inf` support the host waits here for the flag.
    """
    if supports_found_inf(optimizer):
        optimizer.found_inf = step_ok.logical_not().float()  # type: ignore[attr-defined]  # as torch's GradScaler sets it
        optimizer.step()
    elif step_ok.item():
        optimizer.step()
