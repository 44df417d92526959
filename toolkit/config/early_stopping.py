"""`stop_when`: ends a process once a number is low enough."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from toolkit.config.base import StrictModel
from toolkit.config.compat.output import STOP_WHEN


class StopWhenConfig(StrictModel):
    """`stop_when`: ends the process as finished once the mean of a number is below a bound.

    The final file is saved and the job's next process runs.
    """

    metric: str = "loss"
    """A number that is logged: of a step `loss`, `grad_norm`, `lr` or `t_mean`; `validation/loss`, or that of one
    noise level, such as `validation/loss_t0.125` (with the section `validation`)."""

    below: float
    """The process ends when the mean is lower than this. 0: never, for a number that is never negative."""

    smooth: int = Field(default=20, ge=1)
    """How many values the mean is over: the last finite ones, one per step (or validation). With fewer the process goes
    on."""

    min_steps: int = Field(default=0, ge=0)
    """Optimizer steps that are done in any case. 0: none."""

    check_every: int = Field(default=10, ge=1)
    """Optimizer steps between two checks of the mean."""

    foreign: ClassVar = STOP_WHEN
