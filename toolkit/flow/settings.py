"""The keys of `train` that shape noise levels and loss, under their own names and with their defaults."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class FlowSettings:
    """What each key means: docs/config.md, section `train`."""

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
    linear_timesteps2: bool = False
    loss_type: str = "mse"
    huber_schedule: str = "constant"
    huber_c: float = 0.1
    huber_scale: float = 1.0

    @staticmethod
    def named_in(section: object) -> dict[str, Any]:
        """The values a section has under these names, as keyword arguments."""
        return {field.name: getattr(section, field.name) for field in fields(FlowSettings)}
