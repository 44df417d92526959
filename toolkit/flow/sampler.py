"""From pure noise to an image: the noise levels of a sampling run, and Euler's steps.

`sigmas` makes the levels, `resampled` fits a grid of levels to another number of steps,
and `euler_sample` follows the velocity field. The model is passed in as a function;
guidance, prompts and decoding are in `toolkit/train/sampling.py`, which calls this
module.

Shape suffixes: B batch, C channels, H/W latent height and width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def sigmas(
    steps: int, mu: float, terminal: float | None, levels: Sequence[float] = ()
) -> Tensor:
    """Noise fractions [steps + 1] from 1 down to 0, float32.

    mu: shift exponent; a larger one spends more steps at high noise. terminal: the last
    level before 0, in (0, 1); None leaves the shifted value. levels: what is shifted,
    descending, in (0, 1]; none: linspace(1, 1 / steps, steps), as diffusers' pipelines
    do. Source: diffusers, FlowMatchEulerDiscreteScheduler.set_timesteps with
    exponential dynamic shifting and `stretch_shift_to_terminal`.

    >>> sigmas(4, mu=0.0, terminal=None)
    tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000])
    """
    even = np.array(levels) if levels else evenly(steps)
    shifted = math.exp(mu) / (math.exp(mu) + (1 / even.astype(np.float32) - 1))
    if terminal is not None and shifted[-1] < 1:
        below_one = 1 - shifted
        shifted = 1 - below_one / (below_one[-1] / (1 - terminal))
    return torch.from_numpy(np.append(shifted, 0.0).astype(np.float32))


def evenly(steps: int) -> np.ndarray:
    """Levels before the shift, as far from each other as the last one is from 0.

    >>> evenly(4).tolist()
    [1.0, 0.75, 0.5, 0.25]
    """
    return np.linspace(1.0, 1 / steps, steps)


def resampled(levels: Sequence[float], steps: int) -> tuple[float, ...]:
    """A grid of noise levels for another number of steps: interpolated over its index,
    so that the first and the last level stay; for one step the first. An even grid
    stays even down to 0, as diffusers' pipelines make it, and an empty one empty.

    >>> resampled([1.0, 0.6], 3)
    (1.0, 0.8, 0.6)
    >>> resampled([1.0, 0.5], 4)
    (1.0, 0.75, 0.5, 0.25)
    """
    if not levels:
        return ()
    if np.allclose(levels, evenly(len(levels))):
        return tuple(evenly(steps).tolist())
    places = np.linspace(0, len(levels) - 1, steps)
    return tuple(np.interp(places, range(len(levels)), levels).tolist())


def euler_sample(
    velocity: Callable[[Tensor, Tensor], Tensor], noise_BCHW: Tensor, sigmas: Tensor
) -> Tensor:
    """Follows the velocity field from noise to an image, in float32.

    velocity: called as (x_t_BCHW, t_B), returns the velocity noise - image. sigmas:
    descending noise fractions, 1 first, 0 last. Source: Euler's method on dx/dt = v;
    diffusers, FlowMatchEulerDiscreteScheduler.step.

    With the velocity of one image it ends at this image:

    >>> image_BCHW, noise_BCHW = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    >>> levels = sigmas(4, mu=0.0, terminal=None)
    >>> found_BCHW = euler_sample(
    ...     lambda x_BCHW, t_B: noise_BCHW - image_BCHW, noise_BCHW, levels
    ... )
    >>> torch.equal(found_BCHW, image_BCHW)
    True
    """
    x_BCHW = noise_BCHW.float()
    for sigma, following in itertools.pairwise(sigmas):
        v_BCHW = velocity(x_BCHW, sigma.to(x_BCHW.device).expand(len(x_BCHW))).float()
        # The noise comes from the CPU; the velocity decides where the rest is computed.
        x_BCHW = (
            x_BCHW.to(v_BCHW.device) + (following - sigma).to(v_BCHW.device) * v_BCHW
        )
    return x_BCHW
