"""The training objective: interpolants between image and noise, and the loss of a
sample.

An `Interpolant` mixes image and noise and says what the model predicts.
`loss_per_sample` is the loss, and `weights` its weight by timestep. All are pure
functions of tensors and `FlowSettings`. Drawing the timestep is in `timesteps.py`.

`toolkit/train/flow_step.py` and `toolkit/train/validation.py` call it.

Shape suffixes: B batch, C channels, H/W height and width of the latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from toolkit.flow.settings import WEIGHTING_SCHEMES, FlowSettings

# ------------------------------------------------------------ interpolant


def at_least_float32(tensor: Tensor) -> Tensor:
    """A half-precision tensor as float32; float32 and float64 tensors unchanged.

    >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def linear_path(
    x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor
) -> tuple[Tensor, Tensor]:
    """The noisy latent x_t = (1 - t) x0 + t noise and the velocity noise - x0, at least
    float32.

    t_B: noise fraction in [0, 1]; 1 is pure noise. Kept in float32: 0.999 is 1.0 in
    bfloat16. Raises ValueError when x0 and noise differ in shape. Source: Liu et al.
    2022, arXiv:2209.03003, eq. 1, with time reversed.
    """
    x0_BCHW, noise_BCHW, t_B111 = _alike(x0_BCHW, noise_BCHW, t_B)
    return (1 - t_B111) * x0_BCHW + t_B111 * noise_BCHW, noise_BCHW - x0_BCHW


def trigonometric_path(
    x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor
) -> tuple[Tensor, Tensor]:
    """x_t = cos(a) x0 + sin(a) noise and v = cos(a) noise - sin(a) x0 with a = pi t /
    2, at least float32; at every t, x_t has the variance of x0 and noise. dx_t/dt is pi
    / 2 times v.

    t_B: as of `linear_path`. Raises ValueError when x0 and noise differ in shape.
    Source: v: Salimans & Ho 2022, arXiv:2202.00512, appendix D; the path: Albergo &
    Vanden-Eijnden 2023, arXiv:2209.15571, section 2 (trigonometric interpolant), with
    time reversed.
    """
    x0_BCHW, noise_BCHW, t_B111 = _alike(x0_BCHW, noise_BCHW, t_B)
    cos_B111 = torch.cos(math.pi / 2 * t_B111)
    sin_B111 = torch.sin(math.pi / 2 * t_B111)
    return (
        cos_B111 * x0_BCHW + sin_B111 * noise_BCHW,
        cos_B111 * noise_BCHW - sin_B111 * x0_BCHW,
    )


def _alike(
    x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if x0_BCHW.shape != noise_BCHW.shape:
        raise ValueError(
            f"x0 {tuple(x0_BCHW.shape)} and noise {tuple(noise_BCHW.shape)} differ in shape"
        )
    return (
        at_least_float32(x0_BCHW),
        at_least_float32(noise_BCHW),
        at_least_float32(t_B)[:, None, None, None],
    )


class Interpolant(NamedTuple):
    """How image and noise are mixed, and what the model predicts of it.

    >>> x0_BCHW, noise_BCHW = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    >>> mix = INTERPOLANTS["flow"].mix
    >>> x_t_BCHW, velocity_BCHW = mix(x0_BCHW, noise_BCHW, torch.tensor([0.25]))
    >>> x_t_BCHW.item(), velocity_BCHW.item()
    (0.25, 1.0)
    """

    mix: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """From (x0, noise, t) to x_t and what is predicted."""

    speed: float
    """dx_t/dt is so many times what is predicted."""


INTERPOLANTS = {
    "flow": Interpolant(linear_path, 1.0),
    "v": Interpolant(trigonometric_path, math.pi / 2),
}
"""By `ModelFacts.prediction`."""


# ------------------------------------------------------------ loss of each sample


HUBER_BEND = 0.1
"""The size of a difference below which `huber` is nearly a square, and above it nearly
a line."""


def huber(difference_BCHW: Tensor) -> Tensor:
    """2 c (sqrt(d^2 + c^2) - c) with c = HUBER_BEND: d^2 where d is far below c, 2 c |d|
    far above it, so that outliers pull less.

    Source: Charbonnier et al. 1994; kohya sd-scripts, `loss_type huber` with a
    constant schedule.

    Returns the loss of each element [B, C, H, W].

    >>> huber(torch.tensor(3**0.5 / 10))
    tensor(0.0200)
    """
    c = difference_BCHW.new_tensor(HUBER_BEND)
    # The same as the formula above, without its loss of digits where d is small.
    return (
        2
        * c
        * difference_BCHW.square()
        / (torch.sqrt(difference_BCHW.square() + c**2) + c)
    )


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda difference_BCHW, t_B: difference_BCHW.square(),
    "mae": lambda difference_BCHW, t_B: difference_BCHW.abs(),
    "huber": lambda difference_BCHW, t_B: huber(difference_BCHW),
}
"""By `train.loss_type`: the loss of each element, from the difference and the noise
fractions."""


def loss_per_sample(
    predicted_BCHW: Tensor,
    target_BCHW: Tensor,
    t_B: Tensor | None = None,
    mask_B1HW: Tensor | None = None,
    settings: FlowSettings = FlowSettings(),  # noqa: B008 - frozen
) -> Tensor:
    """Mean loss of each sample [B], computed in at least float32.

    t_B: noise fractions, for losses that depend on them. mask_B1HW: weight in [0, 1] of
    each latent pixel. The mean stays over all pixels, so that a pixel weighs the same
    under every mask, and a mask of zeros gives 0 (ai-toolkit's `SDTrainer` divides the
    mask by its mean over the batch instead).

    >>> loss_per_sample(torch.ones(2, 4, 8, 8), torch.zeros(2, 4, 8, 8))
    tensor([1., 1.])
    """
    difference_BCHW = at_least_float32(predicted_BCHW) - at_least_float32(target_BCHW)
    t_B = torch.zeros(len(difference_BCHW)) if t_B is None else t_B
    loss_BCHW = LOSSES[settings.loss_type](difference_BCHW, t_B.to(difference_BCHW))
    if mask_B1HW is not None:
        loss_BCHW = loss_BCHW * mask_B1HW.to(loss_BCHW)
    return torch.mean(loss_BCHW, dim=(1, 2, 3))


# ------------------------------------------------------------ weight by timestep


def flex(t_B: Tensor) -> Tensor:
    """The measured weight of the nearest of 1000 levels. Source: ai-toolkit,
    `timestep_type weighted`.

    There t is always one of the levels, and its place on their list is its weight's.
    """
    return _flex_weights(t_B.device)[(1000 - _nearest_level(t_B)).long()]


@cache  # once per device: the loss must not wait for a copy
def _flex_weights(device: torch.device) -> Tensor:
    """[1000] float32, from t = 1 down to t = 0.001."""
    rows = np.loadtxt(Path(__file__).with_name("flex_weights.txt"), dtype=np.float32)
    return torch.from_numpy(rows.ravel()).to(device)


def sigma_sqrt(t_B: Tensor) -> Tensor:
    """1 / t^2 [B]. Source: diffusers and musubi-tuner, `weighting_scheme sigma_sqrt`.

    t is first rounded to the nearest of 0.001, 0.002, ..., 1, so the weight is between
    1 (pure noise) and 1e6.

    >>> sigma_sqrt(torch.tensor([1.0, 0.5]))
    tensor([1., 4.])
    """
    return (_nearest_level(t_B) / 1000) ** -2.0


def cosmap(t_B: Tensor) -> Tensor:
    """2 / (pi (1 - 2 t + 2 t^2)) [B]: the middle levels most. Source: Esser et al.
    2024, arXiv:2403.03206, section 3.1.

    t is first rounded to the nearest of 0.001, 0.002, ..., 1. The weight is largest at
    t = 0.5 (4 / pi) and half as large at both ends.

    >>> cosmap(torch.tensor([1.0, 0.5]))
    tensor([0.6366, 1.2732])
    """
    t_B = _nearest_level(t_B) / 1000
    return 2 / (math.pi * (1 - 2 * t_B + 2 * t_B**2))


def _nearest_level(t_B: Tensor) -> Tensor:
    # In thousandths. musubi-tuner looks t up among 0.001, ..., 1; the smallest of them
    # also keeps 1 / t^2 finite.
    return (t_B * 1000).round().clamp(1, 1000)


def bell(t_B: Tensor) -> Tensor:
    """A bell around the middle [B], 0 at pure noise, mean 1. Source: ai-toolkit,
    `linear_timesteps`.

    >>> bell(torch.tensor([1.0, 0.5]))
    tensor([0.0000, 1.5796])
    """
    # In float32, as in ai-toolkit: beside the foot of the bell the rounding is part of
    # the number.
    place_B = (1000 * (1 - t_B)).float() / 1000 - 0.5
    return ((torch.exp(-2 * place_B**2) - BELL_FOOT) / BELL_MEAN).to(t_B).clamp(min=0)


BELL_FOOT = math.exp(-0.5)
BELL_MEAN = (
    sum(math.exp(-2 * (index / 1000 - 0.5) ** 2) - BELL_FOOT for index in range(1000))
    / 1000
)

WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": torch.ones_like,
    "sigma_sqrt": sigma_sqrt,
    "cosmap": cosmap,
    "bell": bell,
}
"""By the values of `WEIGHTING_SCHEMES`."""


def weights(t_B: Tensor, settings: FlowSettings) -> Tensor:
    """The weight of the loss of each sample [B], by `weighting_scheme`.

    `timestep_type weighted` or else `linear_timesteps` multiply it by ai-toolkit's
    weighting `flex` or `bell`. Raises KeyError for a scheme that is not in `WEIGHTING_SCHEMES`.

    >>> weights(torch.tensor([1.0, 0.5]), FlowSettings(weighting_scheme="sigma_sqrt"))
    tensor([1., 4.])
    """
    by_scheme = WEIGHTINGS[WEIGHTING_SCHEMES[settings.weighting_scheme]](t_B)
    # One of ai-toolkit's at most, in this order. Source: ai-toolkit,
    # `get_weights_for_timesteps`.
    if settings.timestep_type == "weighted":
        return by_scheme * flex(t_B)
    if settings.linear_timesteps:
        return by_scheme * bell(t_B)
    return by_scheme
