"""The names and settings of noise levels and losses, without torch.

The tables list the values of `train.timestep_type`, `train.weighting_scheme` and
`train.loss_type`, and the keys that each of them uses. `FlowSettings` has these keys
with their defaults. The last part counts how many noise levels share a forward pass.

`toolkit/config/sections/train.py` checks a job against the tables; `loss.py` and
`timesteps.py` have the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

_WIDTH = ("sigmoid_scale",)
_NORMAL = ("logit_mean", "logit_std")

TIMESTEP_TYPES: dict[str, tuple[str, ...]] = {
    "sigmoid": _WIDTH,
    "linear": (),
    "uniform": (),
    "weighted": (),
    "sigma": (),
    "shift": ("discrete_flow_shift",),
    "model_shift": _WIDTH,
    "flux_shift": _WIDTH,
    "logsnr": _NORMAL,
    "lognorm_blend": (),
    "qinglong_flux": _WIDTH + _NORMAL,
    "qinglong_model": _WIDTH,
}
"""`train.timestep_type` -> keys of `train` that matter to it and not to all.
`flow/timesteps.py` has the formulas."""

WEIGHTING_SCHEMES = {
    "none": "none",
    "sigma_sqrt": "sigma_sqrt",
    "logit_normal": "none",
    "mode": "none",
    "cosmap": "cosmap",
    "bell": "bell",
}
"""`train.weighting_scheme` -> function of `flow/loss.py`. logit_normal and mode change
what `timestep_type sigma` samples, and weight all alike."""

LOSS_TYPES = ("mse", "mae", "huber")
"""`train.loss_type`: functions of `flow/loss.py`."""


@dataclass(frozen=True)
class FlowSettings:
    """What each key means: docs/config.md, section `train`.

    >>> FlowSettings(timestep_type="sigma").mode_scale
    1.29
    """

    timestep_type: str = "sigmoid"
    sigmoid_scale: float = 1.0
    discrete_flow_shift: float | None = None
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    weighting_scheme: str = "none"
    content_or_style: str = "balanced"
    min_timestep: float = 0.0
    max_timestep: float = 1000.0
    preserve_distribution_shape: bool = False
    num_timestep_buckets: int = 0
    linear_timesteps: bool = False
    loss_type: str = "mse"

    @staticmethod
    def named_in(section: object) -> dict[str, Any]:
        """The values a section has under these names, as keyword arguments.

        Raises AttributeError when the section lacks one of the fields.
        """
        return {
            field.name: getattr(section, field.name) for field in fields(FlowSettings)
        }
