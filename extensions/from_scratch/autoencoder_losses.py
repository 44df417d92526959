"""The terms of an autoencoder's loss. Each is a number per image, so it does not depend
on how images are batched.

The functions neither weight the terms, except `kl_weight`, nor add them up:
`autoencoder_step` does both. Keys and metrics of the terms are in `losses_config`.

Images are in [-1, 1]. Shape suffixes: B batch, C channels, H/W height and width (of
images or latents), N pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, relu

from extensions.from_scratch.losses_config import LossesConfig
from toolkit.rounding import ceil_divide

BLUR = 4
"""Pixels along one side of the squares whose means are the blurred image."""

HIGH_FREQUENCY = 0.5
"""Weight of the difference that the blur removes."""

MAX_QUANTILES = 16_384
"""Maximum number of values of a channel that are sorted; of more, evenly spaced
ones."""

STD_EPSILON = 1e-2
"""Added to both standard deviations of a ratio: a flat image has none."""

FLAT = 0.1
"""Standard deviation of a channel below which `contrast` takes the difference relative
to this one."""


def reconstruction(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """[B]: mean absolute difference of the blurred images, plus half the mean absolute
    difference of the rest.

    By linearity the difference of the images itself is blurred, by means over 4 x 4
    squares and bilinear interpolation.
    """
    difference_BCHW = output_BCHW - target_BCHW
    size = difference_BCHW.shape[-2:]
    means_BChw = avg_pool2d(
        difference_BCHW, BLUR, ceil_mode=True, count_include_pad=False
    )
    low_BCHW = interpolate(means_BChw, size=size, mode="bilinear", align_corners=False)
    high_BCHW = difference_BCHW - low_BCHW
    return _mean(low_BCHW.abs()) + HIGH_FREQUENCY * _mean(high_BCHW.abs())


def l1(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """[B]: mean absolute difference.

    >>> l1(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
    tensor([1., 1.])
    """
    return _mean((output_BCHW - target_BCHW).abs())


def mse(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """[B]: mean squared difference."""
    return _mean((output_BCHW - target_BCHW).square())


def contrast(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """[B]: sum over channels of (std(output) / std(target) - 1)^2, plus the squared
    difference of the whole images' standard deviations.

    Source: FluxFlow's training guide, "Contrast Regularization Loss", read per image.
    Its ratio has no bound where a channel is nearly constant, as in drawings and logos:
    it is in the hundreds at first, and other losses are about 1. For such a channel the
    difference is divided by `FLAT` instead. Channels of photographs vary more; their
    value is the same as in the guide.
    """
    output_BC = _std(output_BCHW, (2, 3))
    target_BC = _std(target_BCHW, (2, 3))
    ratio_BC = (output_BC + STD_EPSILON) / (target_BC + STD_EPSILON)
    bounded_BC = (output_BC - target_BC) / (FLAT + STD_EPSILON)
    deviation_BC = torch.where(target_BC < FLAT, bounded_BC, ratio_BC - 1)
    whole_B = _std(output_BCHW, (1, 2, 3)) - _std(target_BCHW, (1, 2, 3))
    return deviation_BC.square().sum(1) + whole_B.square()


def color(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """[B]: squared differences of each channel's mean and standard deviation, averaged
    over channels."""
    mean_BC = output_BCHW.mean((2, 3)) - target_BCHW.mean((2, 3))
    std_BC = _std(output_BCHW, (2, 3)) - _std(target_BCHW, (2, 3))
    return (mean_BC.square() + std_BC.square()).mean(1)


def histogram(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """[B]: mean absolute difference of each channel's sorted values: the 1-Wasserstein
    distance of the histograms.

    Differentiable, as counting in bins is not.
    """
    output_BCN = _spaced(output_BCHW.flatten(2)).sort(dim=2).values
    target_BCN = _spaced(target_BCHW.flatten(2)).sort(dim=2).values
    return (output_BCN - target_BCN).abs().mean((1, 2))


def kl_divergence(
    mean_BCHW: Tensor, logvar_BCHW: Tensor, free_bits: float, reduction: str
) -> Tensor:
    """[B]: divergence of N(mean, exp(logvar)) from N(0, 1), averaged or summed over the
    elements of the latents.

    free_bits: each element counts at least this much (nats), and has no gradient below
    it. Source: Kingma and Welling, arXiv 1312.6114, appendix B; free bits: Kingma et
    al., arXiv 1606.04934, section C.8, per element.
    """
    element_BCHW = 0.5 * (mean_BCHW.square() + logvar_BCHW.exp() - 1 - logvar_BCHW)
    if free_bits:
        element_BCHW = element_BCHW.clamp_min(free_bits)
    if reduction == "sum":
        return element_BCHW.flatten(1).sum(1)
    return _mean(element_BCHW)


def kl_weight(losses: LossesConfig, step: int) -> float:
    """The weight of the divergence after `step` optimizer steps of this run: half a
    cosine from 0 to `losses.kl`.

    >>> round(kl_weight(LossesConfig(kl=1.0, kl_warmup_steps=100), step=50), 6)
    0.5
    """
    if not losses.kl_warmup_steps:
        return losses.kl
    return (
        losses.kl * (1 - math.cos(math.pi * min(step / losses.kl_warmup_steps, 1))) / 2
    )


def hinge_discriminator(real_BN: Tensor, fake_BN: Tensor) -> tuple[Tensor, Tensor]:
    """[B] each: the two terms of the discriminator's hinge loss, at images and at
    reconstructions, averaged over patches. Source: Lim and Ye, arXiv 1705.02894, eq.
    11."""
    return relu(1 - real_BN).mean(1), relu(1 + fake_BN).mean(1)


def hinge_generator(fake_BN: Tensor) -> Tensor:
    """[B]: the mean judgement of the discriminator on the reconstructions, negated."""
    return -fake_BN.mean(1)


def r1_penalty(judge: Callable[[Tensor], Tensor], real_BCHW: Tensor) -> Tensor:
    """[B]: half the squared norm of the gradient of the mean judgement at real images,
    differentiable.

    Source: Mescheder et al., arXiv 1801.04406, eq. 9, without gamma.
    """
    real_BCHW = real_BCHW.detach().requires_grad_()
    (gradient_BCHW,) = torch.autograd.grad(
        judge(real_BCHW).mean(1).sum(), real_BCHW, create_graph=True
    )
    return 0.5 * gradient_BCHW.square().flatten(1).sum(1)


PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "reconstruction": reconstruction,
    "mse": mse,
    "contrast": contrast,
    "color": color,
    "histogram": histogram,
}
"""Key of `losses` -> its function of output and target."""


def _mean(element_BCHW: Tensor) -> Tensor:
    return element_BCHW.flatten(1).mean(1)


def _std(image_BCHW: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The standard deviation, with a gradient at flat images too."""
    return (image_BCHW.var(dims, correction=0) + 1e-8).sqrt()


def _spaced(values_BCN: Tensor) -> Tensor:
    step = ceil_divide(values_BCN.shape[2], MAX_QUANTILES)
    return values_BCN[:, :, ::step]
