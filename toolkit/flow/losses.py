"""The distance between a predicted and the true velocity, one number per sample.

Shape suffixes: B batch, C channels, H/W height and width of the latent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from toolkit.flow.interpolant import at_least_float32
from toolkit.flow.names import HUBER_SCHEDULES, LOSS_TYPES
from toolkit.flow.settings import FlowSettings


def mse(difference_BCHW: Tensor, t_B: Tensor, settings: FlowSettings) -> Tensor:
    """d^2."""
    return difference_BCHW.square()


def mae(difference_BCHW: Tensor, t_B: Tensor, settings: FlowSettings) -> Tensor:
    """|d|."""
    return difference_BCHW.abs()


def huber(difference_BCHW: Tensor, t_B: Tensor, settings: FlowSettings) -> Tensor:
    """2 c (sqrt(d^2 + c^2) - c): d^2 where d is far below c, 2 c |d| far above it, so that outliers pull less.

    c follows `huber_schedule` over t. Source: Charbonnier et al. 1994; kohya sd-scripts, `loss_type huber`.
    """
    c_B111 = HUBER_BENDS[settings.huber_schedule](t_B, settings.huber_c, settings.huber_scale)[:, None, None, None]
    # The same as the formula above, without its loss of digits where d is small.
    return 2 * c_B111 * difference_BCHW.square() / (torch.sqrt(difference_BCHW.square() + c_B111**2) + c_B111)


def constant(t_B: Tensor, c: float, scale: float) -> Tensor:
    """c."""
    return torch.full_like(t_B, c * scale)


def exponential(t_B: Tensor, c: float, scale: float) -> Tensor:
    """c^t."""
    return scale * c**t_B


def snr(t_B: Tensor, c: float, scale: float) -> Tensor:
    """(1 - c) / (1 + sigma)^2 + c; noise to signal is sigma = t / (1 - t) on the straight path."""
    return scale * ((1 - c) * (1 - t_B) ** 2 + c)


HUBER_BENDS: dict[str, Callable[[Tensor, float, float], Tensor]] = {name: globals()[name] for name in HUBER_SCHEDULES}
"""By `train.huber_schedule`: the bend c at noise fraction t. Source: kohya sd-scripts, `get_huber_threshold`."""

LOSSES: dict[str, Callable[[Tensor, Tensor, FlowSettings], Tensor]] = {name: globals()[name] for name in LOSS_TYPES}
"""By `train.loss_type`: the loss of each element."""


def loss_per_sample(
    predicted_BCHW: Tensor,
    target_BCHW: Tensor,
    t_B: Tensor | None = None,
    mask_B1HW: Tensor | None = None,
    settings: FlowSettings = FlowSettings(),  # noqa: B008 - frozen
) -> Tensor:
    """Mean loss of each sample [B], computed in at least float32.

    t_B: noise fractions, for losses that depend on them. mask_B1HW: weight in [0, 1] of each latent pixel. The mean
    stays over all pixels, so that a pixel weighs the same under every mask, and a mask of zeros gives 0 (ai-toolkit's
    `SDTrainer` divides the mask by its mean over the batch instead).
    """
    difference_BCHW = at_least_float32(predicted_BCHW) - at_least_float32(target_BCHW)
    t_B = torch.zeros(len(difference_BCHW)) if t_B is None else t_B
    loss_BCHW = LOSSES[settings.loss_type](difference_BCHW, t_B.to(difference_BCHW), settings)
    if mask_B1HW is not None:
        loss_BCHW = loss_BCHW * mask_B1HW.to(loss_BCHW)
    return torch.mean(loss_BCHW, dim=(1, 2, 3))
