"""Optimizer steps that are taken or not by a flag on the device, without the host waiting to know it."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

GUARDING = (Adam, AdamW)
"""Optimizers whose fused form guards itself."""


def guards_on_device(optimizer: Optimizer) -> bool:
    """Whether the optimizer can leave a step out without the host knowing of it.

    torch's fused Adam and AdamW do, by the `found_inf` that `torch.amp.GradScaler` gives them: their kernel returns
    before it changes anything, and the step count is taken back. (Fused SGD would leave its first momentum unset.)
    All others count steps on the host.
    """
    return type(optimizer) in GUARDING and all(group["fused"] for group in optimizer.param_groups)


def step_where(optimizer: Optimizer, taken: Tensor) -> None:
    """`optimizer.step()` where `taken` (0-dim bool); elsewhere parameters and state stay as they are, bit for bit.

    For an optimizer that does not guard itself the host waits here until the device knows `taken`.
    """
    if guards_on_device(optimizer):
        optimizer.found_inf = taken.logical_not().float()
        optimizer.step()
    elif taken.item():
        optimizer.step()
