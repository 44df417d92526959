"""The names of noise levels, loss weights and losses, and which keys each makes use of. Imports no torch: the config
reads them as well."""

from __future__ import annotations

from typing import Literal, NamedTuple


class TimestepType(NamedTuple):
    """One value of `train.timestep_type`."""

    formula: str
    """Function of `flow/timesteps.py` from random numbers to t."""

    draws: Literal["rand", "randn"] = "rand"
    """The random numbers it takes, by torch's name: uniform or normal ones."""

    discrete: bool = False
    """t is one of 1000 levels."""

    increasing: bool | None = True
    """Whether a larger random number means more noise; None: neither more nor less."""

    uses: tuple[str, ...] = ()
    """Keys of `train` that matter to it and not to all."""


_WIDTH = ("sigmoid_scale",)
_NORMAL = ("logit_mean", "logit_std")

TIMESTEP_TYPES = {
    "sigmoid": TimestepType("sigmoid", "randn", uses=_WIDTH),
    "linear": TimestepType("even", discrete=True, increasing=False),
    "uniform": TimestepType("uniform"),
    "weighted": TimestepType("even", discrete=True, increasing=False),
    "sigma": TimestepType("even", discrete=True, increasing=False),
    "shift": TimestepType("shift", "randn", uses=("discrete_flow_shift",)),
    "model_shift": TimestepType("model_shift", "randn", uses=_WIDTH),
    "flux_shift": TimestepType("flux_shift", "randn", uses=_WIDTH),
    "logsnr": TimestepType("logsnr", "randn", increasing=False, uses=_NORMAL),
    "lognorm_blend": TimestepType("lognorm_blend"),
    "qinglong_flux": TimestepType("qinglong_flux", increasing=None, uses=_WIDTH + _NORMAL),
    "qinglong_model": TimestepType("qinglong_model", increasing=None, uses=_WIDTH),
}

WEIGHTING_SCHEMES = {
    "none": "none",
    "sigma_sqrt": "sigma_sqrt",
    "logit_normal": "none",
    "mode": "none",
    "cosmap": "cosmap",
}
"""`train.weighting_scheme` -> function of `flow/loss.py`. logit_normal and mode change what `timestep_type sigma`
samples, and weight all alike."""

LOSS_TYPES = ("mse", "mae", "huber")
"""`train.loss_type`: functions of `flow/loss.py`."""

HUBER_SCHEDULES = ("constant", "exponential", "snr")
"""`train.huber_schedule`: functions of `flow/loss.py`."""
