"""Learning-rate schedules: pure functions of the step, so a resume needs no state of theirs.

Each returns a factor of the base learning rate for optimizer step `step`, counted from 0, of `steps`.
Equal to transformers' schedules of the same names (and so to musubi-tuner's).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from toolkit.errors import UserError, did_you_mean

Schedule = Callable[[int], float]
"""From the number of optimizer steps done to the factor of the learning rate for the next one."""


def constant(step: int, steps: int, warmup: int) -> float:
    """1 throughout, after the warm-up."""
    return 1.0


def linear(step: int, steps: int, warmup: int) -> float:
    """From 1 at the end of the warm-up to 0 at the last step.

    Source: transformers, optimization.py, `get_linear_schedule_with_warmup`.
    """
    return max(0.0, (steps - step) / max(1, steps - warmup))


def cosine(step: int, steps: int, warmup: int) -> float:
    """Half a cosine from 1 to 0.

    Source: transformers, optimization.py, `get_cosine_schedule_with_warmup`.
    """
    progress = (step - warmup) / max(1, steps - warmup)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
}
"""By the names of `train.lr_scheduler`."""


PARAMETERS = ("num_warmup_steps",)
"""Names that `train.lr_scheduler_params` may hold."""


def warmup_steps(warmup: float, steps: int) -> int:
    """`train.lr_warmup_steps` as optimizer steps: below 1 it is a share of all steps."""
    return int(warmup * steps) if warmup < 1 else int(warmup)


def build_schedule(name: str, steps: int, warmup: float, params: Mapping[str, Any] = MappingProxyType({})) -> Schedule:
    """The schedule `name` over `steps` optimizer steps with a linear rise from 0 over the warm-up.

    params: `train.lr_scheduler_params`; `num_warmup_steps` there is another name of the warm-up.
    Raises UserError for a parameter these schedules do not have.
    """
    for param in params:
        if param not in PARAMETERS:
            raise UserError(f"train.lr_scheduler_params: {name} has no {param!r}. {did_you_mean(param, PARAMETERS)}")
    rise = warmup_steps(params.get("num_warmup_steps", warmup), steps)

    def factor(step: int) -> float:
        return step / rise if step < rise else SCHEDULES[name](step, steps, rise)

    return factor
