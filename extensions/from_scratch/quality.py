"""How near a reconstruction is to its image. Shape suffixes: B batch, H/W height and width in pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

RANGE = 2.0
"""From the least value of a pixel to the largest."""


def psnr(output_B3HW: Tensor, target_B3HW: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]; inf for equal ones."""
    mse = (output_B3HW - target_B3HW).double().square().mean()
    return float(10 * torch.log10(RANGE**2 / mse))


def ssim(output_B3HW: Tensor, target_B3HW: Tensor) -> float:
    """Structural similarity, mean over pixels and channels; 1 for equal images.

    Source: Wang et al., IEEE TIP 13 (4), 2004, eq. 13, with its 11 x 11 Gaussian window of standard deviation 1.5, only
    where the window lies within the image; sides below 11 pixels take a window as large as the side.
    """
    side = min(11, *output_B3HW.shape[-2:])
    distance = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    weights = torch.exp(-distance.square() / (2 * 1.5**2))
    window = torch.outer(weights, weights) / weights.sum() ** 2
    kernel = window.expand(3, 1, side, side)

    def local_mean(image_B3HW: Tensor) -> Tensor:
        return conv2d(image_B3HW, kernel, groups=3)

    x, y = (image.detach().double().cpu() for image in (output_B3HW, target_B3HW))
    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float((luminance * structure).mean())
