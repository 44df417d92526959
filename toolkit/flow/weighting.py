"""How much the loss of a sample counts, by its noise fraction t.

Shape suffix: B batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toolkit.flow.names import WEIGHTING_SCHEMES
from toolkit.flow.settings import FlowSettings


def flex(t_B: Tensor) -> Tensor:
    """The measured weight of the nearest of 1000 levels. Source: ai-toolkit, `timestep_type weighted`.

    There t is always one of the levels, and its place on their list is its weight's.
    """
    return _flex_weights(t_B.device)[(1000 - _nearest_level(t_B)).long()]


@cache  # for each device once: the loss must not wait for a copy
def _flex_weights(device: torch.device) -> Tensor:
    """[1000] float32, from t = 1 down to t = 0.001."""
    rows = np.loadtxt(Path(__file__).with_name("flex_weights.txt"), dtype=np.float32)
    return torch.from_numpy(rows.ravel()).to(device)


def none(t_B: Tensor) -> Tensor:
    """Every noise level counts alike."""
    return torch.ones_like(t_B)


def sigma_sqrt(t_B: Tensor) -> Tensor:
    """1 / t^2. Source: diffusers and musubi-tuner, `weighting_scheme sigma_sqrt`."""
    return (_nearest_level(t_B) / 1000) ** -2.0


def cosmap(t_B: Tensor) -> Tensor:
    """2 / (pi (1 - 2 t + 2 t^2)): the middle levels most. Source: Esser et al. 2024, arXiv:2403.03206, section 3.1."""
    t_B = _nearest_level(t_B) / 1000
    return 2 / (math.pi * (1 - 2 * t_B + 2 * t_B**2))


def _nearest_level(t_B: Tensor) -> Tensor:
    # In thousandths. musubi-tuner looks t up among 0.001, ..., 1; the smallest of them also keeps 1 / t^2 finite.
    return (t_B * 1000).round().clamp(1, 1000)


def bell(t_B: Tensor) -> Tensor:
    """A bell around the middle, 0 at pure noise, mean 1. Source: ai-toolkit, `linear_timesteps`."""
    # In float32, as there: beside the foot of the bell the rounding is part of the number.
    place_B = (1000 * (1 - t_B)).float() / 1000 - 0.5
    return ((torch.exp(-2 * place_B**2) - BELL_FOOT) / BELL_MEAN).to(t_B).clamp(min=0)


def half_bell(t_B: Tensor) -> Tensor:
    """`bell` above the middle, its top below. Source: ai-toolkit, `linear_timesteps2`."""
    return bell(t_B.clamp(min=0.5))


BELL_FOOT = math.exp(-0.5)
BELL_MEAN = sum(math.exp(-2 * (index / 1000 - 0.5) ** 2) - BELL_FOOT for index in range(1000)) / 1000

WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    name: globals()[name] for name in (*WEIGHTING_SCHEMES.values(), "flex", "bell", "half_bell")
}
"""By `weighting_scheme`, then those that ai-toolkit's `timestep_type` and `linear_timesteps` choose."""


def weights(t_B: Tensor, settings: FlowSettings) -> Tensor:
    """By `weighting_scheme`, times ai-toolkit's weighting where one is asked for."""
    by_scheme = WEIGHTINGS[WEIGHTING_SCHEMES[settings.weighting_scheme]]
    return by_scheme(t_B) * WEIGHTINGS[_of_ai_toolkit(settings)](t_B)


def _of_ai_toolkit(settings: FlowSettings) -> str:
    # One of them at most, in this order. Source: ai-toolkit, `get_weights_for_timesteps`.
    if settings.timestep_type == "weighted":
        return "flex"
    if settings.linear_timesteps2:
        return "half_bell"
    return "bell" if settings.linear_timesteps else "none"
