"""How the noise fraction t of a training step is drawn. t in [0, 1]; 1 is pure noise.

A sampling is a pure function from standard random numbers to t, so that a test can feed it the numbers
another program drew. `draw_timestep` feeds it one sample's own keyed generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

GRID = 1000
"""Levels of ai-toolkit's training grid."""


def sigmoid(normal: Tensor) -> Tensor:
    """t = sigmoid(n), n standard normal: the middle noise levels most often.

    Source: Esser et al. 2024, arXiv:2403.03206, section 3.1 (logit-normal with mean 0, std 1);
    musubi-tuner, `timestep_sampling sigmoid` with `sigmoid_scale` 1.
    """
    return torch.sigmoid(normal)


def uniform(uniform: Tensor) -> Tensor:
    """t = u, u uniform on [0, 1): every noise level alike. Source: musubi-tuner, `timestep_sampling uniform`."""
    return uniform


def linear(uniform: Tensor) -> Tensor:
    """t on the grid 1, 0.999, ..., 0.001, each level alike, for u uniform on [0, 1).

    Source: ai-toolkit, toolkit/samplers/custom_flowmatch_sampler.py, `set_train_timesteps` (linear, weighted).
    """
    return 1 - torch.floor(uniform * GRID) / GRID


@dataclass(frozen=True)
class Sampling:
    """One value of `train.timestep_type`."""

    base: Callable[..., Tensor]
    """Draws the standard random number: torch.randn or torch.rand."""

    transform: Callable[[Tensor], Tensor]


SAMPLINGS = {
    "sigmoid": Sampling(torch.randn, sigmoid),
    "uniform": Sampling(torch.rand, uniform),
    "linear": Sampling(torch.rand, linear),
    "weighted": Sampling(torch.rand, linear),
}


def draw_timestep(timestep_type: str, generator: torch.Generator) -> float:
    """One sample's t in [0, 1], from its own generator."""
    sampling = SAMPLINGS[timestep_type]
    return float(sampling.transform(sampling.base(1, generator=generator)))
