"""How much the loss of a sample counts, by its noise fraction t.

Shape suffix: B batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from toolkit.flow.settings import FlowSettings

FLEX_TIMESTEP = (
    1, 2, 9, 43, 50, 84, 91, 125, 132, 166, 173, 207, 214, 248, 255, 289, 296, 330, 337, 371, 378, 412, 419, 453,
    460, 494, 501, 535, 542, 576, 583, 617, 624, 658, 665, 699, 706, 740, 747, 781, 788, 822, 829, 863, 870, 904,
    911, 945, 952, 986, 993, 1000,
)  # fmt: skip
FLEX_WEIGHT = (
    0.447260112, 0.44538027, 0.450957358, 0.555538237, 0.582157195, 0.688457012, 0.702367067, 0.732147455,
    0.732541323, 0.724099398, 0.722181857, 0.714992523, 0.713859379, 0.715006232, 0.71606636, 0.726513088,
    0.729456306, 0.747915566, 0.752554357, 0.778465867, 0.784448802, 0.816786706, 0.824355125, 0.86301291,
    0.871776402, 0.916977882, 0.926839888, 0.976923943, 0.988089561, 1.04188681, 1.05368888, 1.11240125, 1.12486112,
    1.18653512, 1.19922543, 1.26149464, 1.27458549, 1.33748662, 1.35069788, 1.41044426, 1.42053986, 1.47740495,
    1.48514402, 1.51758301, 1.51843548, 1.50385189, 1.49579155, 1.39096916, 1.36413908, 1.10158515, 0.992735863,
    0.91,
)  # fmt: skip
"""Loss weight at FLEX_TIMESTEP / 1000. The weights were measured on another model; their mean over t is 1.

Source: ai-toolkit, `get_weights_for_timesteps` with `timestep_type: weighted`, known to this project at these
points (tests/golden/aitk_timesteps.json); between them we interpolate.
"""


def flex(t_B: Tensor) -> Tensor:
    """The measured weights, linearly interpolated."""
    weights = np.interp(t_B.double().cpu().numpy() * 1000, FLEX_TIMESTEP, FLEX_WEIGHT)
    return torch.from_numpy(weights).to(t_B.device, torch.float32)


def none(t_B: Tensor) -> Tensor:
    """Every noise level counts alike."""
    return torch.ones_like(t_B)


def sigma_sqrt(t_B: Tensor) -> Tensor:
    """1 / t^2. Source: diffusers and musubi-tuner, `weighting_scheme sigma_sqrt`."""
    return _nearest_level(t_B) ** -2.0


def cosmap(t_B: Tensor) -> Tensor:
    """2 / (pi (1 - 2 t + 2 t^2)): the middle levels most. Source: Esser et al. 2024, arXiv:2403.03206, section 3.1."""
    t_B = _nearest_level(t_B)
    return 2 / (math.pi * (1 - 2 * t_B + 2 * t_B**2))


def _nearest_level(t_B: Tensor) -> Tensor:
    # musubi-tuner looks t up among 0.001, ..., 1; the smallest of them also keeps 1 / t^2 finite.
    return (t_B * 1000).round().clamp(1, 1000) / 1000


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
    "none": none,
    "flex": flex,
    "sigma_sqrt": sigma_sqrt,
    "cosmap": cosmap,
    "bell": bell,
    "half_bell": half_bell,
}

SAMPLING_ONLY = ("logit_normal", "mode")
"""Values of `train.weighting_scheme` that change what `timestep_type sigma` draws, and weigh all alike."""


def weights(t_B: Tensor, settings: FlowSettings) -> Tensor:
    """The product of all weightings that the settings ask for."""
    names = {
        settings.weighting_scheme: settings.weighting_scheme not in SAMPLING_ONLY,
        "flex": settings.timestep_type == "weighted",
        "bell": settings.linear_timesteps,
        "half_bell": settings.linear_timesteps2,
    }
    weight_B = none(t_B)
    for name, wanted in names.items():
        weight_B = weight_B * WEIGHTINGS[name](t_B) if wanted else weight_B
    return weight_B
