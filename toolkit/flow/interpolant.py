"""The straight path between an image and noise.

Shape suffixes: B batch, C channels, H/W height and width of the latent.
"""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def linear_path(x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
    """The noisy latent x_t = (1 - t) x0 + t noise and the velocity noise - x0, at least float32.

    t_B: noise fraction in [0, 1]; 1 is pure noise. Kept in float32: 0.999 is 1.0 in bfloat16.
    Raises ValueError when x0 and noise differ in shape.
    Source: Liu et al. 2022, arXiv:2209.03003, eq. 1, with time reversed.
    """
    if x0_BCHW.shape != noise_BCHW.shape:
        raise ValueError(f"x0 {tuple(x0_BCHW.shape)} and noise {tuple(noise_BCHW.shape)} differ in shape")
    x0_BCHW, noise_BCHW = at_least_float32(x0_BCHW), at_least_float32(noise_BCHW)
    t_B111 = at_least_float32(t_B)[:, None, None, None]
    return (1 - t_B111) * x0_BCHW + t_B111 * noise_BCHW, noise_BCHW - x0_BCHW
