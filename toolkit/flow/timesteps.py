"""How the noise fraction t of a training step is drawn. t in [0, 1]; 1 is pure noise.

A sampling is a pure function from standard random numbers to t, so that a test can feed
it the numbers of another program. `draw_timestep` feeds it one sample's own keyed
generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from toolkit.flow.settings import FlowSettings

LEVELS = 1000
"""Noise levels of a ladder: 1, 0.999, ..., 0.001; `min_timestep` and `max_timestep`
count in its unit."""

SMALLEST = 1e-7
"""Uniform numbers are kept this far from 0 and 1 before they become normal ones, which
stay finite so."""

NormalTransform = Callable[[Tensor, FlowSettings], Tensor]
"""From standard normal numbers to t."""


@dataclass(frozen=True)
class TimestepContext:
    """What some samplings must know of the image they draw for.

    >>> context = TimestepContext(tokens=1024, mu=0.55)
    >>> settings = FlowSettings(timestep_type="model_shift")
    >>> round(timesteps(torch.zeros(1), settings, context).item(), 2)
    0.63
    """

    tokens: int = 4096
    """Tokens of the target, without the tokens of references."""

    mu: float = 0.0
    """Shift exponent with which the model itself samples at this size, in its usual
    number of steps."""

    terminal: float | None = None
    """Last noise level of the model's own sampling before 0."""


# ------------------------------------------------------------ from a standard random
# number to t


def sigmoid(normal: Tensor, settings: FlowSettings, context: TimestepContext) -> Tensor:
    """t = sigmoid(scale n), n standard normal: the middle noise levels most often.

    Source: Esser et al. 2024, arXiv:2403.03206, section 3.1 (logit-normal with mean 0);
    musubi-tuner, `timestep_sampling sigmoid`.

    >>> sigmoid(torch.tensor([-1.0, 0.0, 1.0]), FlowSettings(), TimestepContext())
    tensor([0.2689, 0.5000, 0.7311])
    """
    return torch.sigmoid(settings.sigmoid_scale * normal)


def even(uniform: Tensor, settings: FlowSettings, context: TimestepContext) -> Tensor:
    """u, uniform on [0, 1), as t or as the place on a ladder of levels (0 at pure
    noise): every level alike.

    Source: musubi-tuner, `timestep_sampling uniform`.
    """
    return uniform


def shifted(t: Tensor, factor: float) -> Tensor:
    """factor t / (1 + (factor - 1) t): above 1 it moves all levels towards noise, below
    1 away from it.

    Source: Esser et al. 2024, arXiv:2403.03206, section 5.3.2, eq. 23.

    >>> shifted(torch.tensor(0.5), 3.0)
    tensor(0.7500)
    """
    return factor * t / (1 + (factor - 1) * t)


def shift(normal: Tensor, settings: FlowSettings, context: TimestepContext) -> Tensor:
    """`sigmoid`, shifted by `discrete_flow_shift`. Source: musubi-tuner,
    `timestep_sampling shift`.

    >>> shift(torch.zeros(1), FlowSettings(discrete_flow_shift=3.0), TimestepContext())
    tensor([0.7500])
    """
    assert settings.discrete_flow_shift is not None  # `shift` is refused without it
    return shifted(sigmoid(normal, settings, context), settings.discrete_flow_shift)


def model_shift(
    normal: Tensor, settings: FlowSettings, context: TimestepContext
) -> Tensor:
    """`sigmoid`, shifted by the factor exp(`context.mu`), as the model's own sampling
    is at this size. Source: musubi-tuner, `qwen_shift`.

    >>> model_shift(torch.zeros(1), FlowSettings(), TimestepContext(mu=1.0986))
    tensor([0.7500])
    """
    return shifted(sigmoid(normal, settings, context), math.exp(context.mu))


def flux_shift(
    normal: Tensor, settings: FlowSettings, context: TimestepContext
) -> Tensor:
    """`sigmoid`, shifted by Flux's line: exponent 0.5 at 256 tokens, 1.15 at 4096;
    outside of these the line goes on. Source: musubi-tuner.

    >>> flux_shift(torch.zeros(1), FlowSettings(), TimestepContext(tokens=4096))
    tensor([0.7595])
    """
    slope = (1.15 - 0.5) / (4096 - 256)
    return shifted(
        sigmoid(normal, settings, context),
        math.exp(0.5 + slope * (context.tokens - 256)),
    )


def inference_timesteps(
    uniform: Tensor, settings: FlowSettings, context: TimestepContext
) -> Tensor:
    """The levels of a sampling run of 1000 steps at this size, each alike.

    Source: ai-toolkit, `set_train_timesteps` with `timestep_type shift`: diffusers'
    `set_timesteps`.

    >>> context = TimestepContext(mu=0.0)
    >>> inference_timesteps(torch.tensor([0.0, 0.5]), FlowSettings(), context)
    tensor([1.0000, 0.5000])
    """
    factor = math.exp(context.mu)
    levels = shifted(1 - torch.floor(uniform * LEVELS) / LEVELS, factor)
    if context.terminal is None:
        return levels
    last = factor / LEVELS / (1 + (factor - 1) / LEVELS)
    return 1 - (1 - levels) * (1 - context.terminal) / (1 - last)


def logsnr(normal: Tensor, settings: FlowSettings, context: TimestepContext) -> Tensor:
    """t = sigmoid(-l / 2), the log signal-to-noise ratio l normal with `logit_mean` and
    `logit_std`.

    Source: Choi et al. 2024, arXiv:2411.14793, section 3.2; musubi-tuner,
    `timestep_sampling logsnr`.

    >>> logsnr(torch.tensor([-2.0, 0.0, 2.0]), FlowSettings(), TimestepContext())
    tensor([0.7311, 0.5000, 0.2689])
    """
    return torch.sigmoid(-0.5 * (settings.logit_mean + settings.logit_std * normal))


def mixture(
    uniform: Tensor,
    settings: FlowSettings,
    parts: Sequence[tuple[float, NormalTransform]],
) -> Tensor:
    """t by one of several samplings from normal numbers: u chooses, and what is left of
    it becomes the normal number.

    parts: the share of each, which add up to 1, and the sampling.

    The result has the shape of `uniform`, whose numbers are in [0, 1).
    """
    t = torch.empty_like(uniform)
    low = 0.0
    for share, transform in parts:
        chosen = (
            (uniform >= low) & (uniform < low + share)
            if low + share < 1 - SMALLEST
            else uniform >= low
        )
        rest = ((uniform[chosen] - low) / share).clamp(SMALLEST, 1 - SMALLEST)
        t[chosen] = transform(torch.special.ndtri(rest), settings)
        low += share
    return t


def low_noise(normal: Tensor, settings: FlowSettings) -> Tensor:
    """`logsnr` around 5.36 with width 1: t near 0.06. Source: musubi-tuner, its two
    `qinglong` samplings."""
    return torch.sigmoid(-0.5 * (5.36 + normal))


def qinglong_flux(
    uniform: Tensor, settings: FlowSettings, context: TimestepContext
) -> Tensor:
    """79 % `flux_shift`, 11 % `logsnr`, 10 % little noise. Source: musubi-tuner,
    `timestep_sampling qinglong_flux`."""
    by_size = partial(flux_shift, context=context)
    by_ratio = partial(logsnr, context=context)
    return mixture(
        uniform, settings, [(0.79, by_size), (0.11, by_ratio), (0.10, low_noise)]
    )


def qinglong_model(
    uniform: Tensor, settings: FlowSettings, context: TimestepContext
) -> Tensor:
    """95 % `model_shift`, 5 % little noise. Source: musubi-tuner, `timestep_sampling
    qinglong_...` of this model."""
    return mixture(
        uniform,
        settings,
        [(0.95, partial(model_shift, context=context)), (0.05, low_noise)],
    )


def lognorm_blend(
    uniform: Tensor, settings: FlowSettings, context: TimestepContext
) -> Tensor:
    """Three quarters around t = 0.65, one quarter even. Source: ai-toolkit,
    `timestep_type lognorm_blend`.

    t is interpolated on the CPU, in the inverse of a tabulated distribution; the result
    has the device and dtype of `uniform`.
    """
    levels, shares = _lognorm_blend_shares()
    return torch.from_numpy(
        np.interp(uniform.double().cpu().numpy(), shares, levels)
    ).to(uniform)


@cache
def _lognorm_blend_shares() -> tuple[np.ndarray, np.ndarray]:
    """Levels t and the share of draws at or below each.

    The three quarters are 1 - x / x_max, x log-normal with sigma 1/3 and x_max the
    largest of 750 draws: itself random, averaged over here.
    """
    sigma = 1 / 3
    draws = 750
    levels = np.linspace(0, 1, 2001)
    middle_of_share = torch.arange(0.5, 200, dtype=torch.float64) / 200
    log_max = sigma * torch.special.ndtri(middle_of_share ** (1 / draws))
    log_rest = torch.from_numpy(np.log(np.maximum(1 - levels, 1e-300)))
    above = torch.special.ndtr(
        (log_rest[:, None] + log_max) / sigma
    ) / torch.special.ndtr(log_max / sigma)
    # the largest one itself is at 0
    lognormal = 1 - (1 - 1 / draws) * above.mean(dim=1).numpy()
    return np.maximum(levels, 1 / LEVELS), 0.25 * levels + 0.75 * lognormal


def logit_normal(
    normal: Tensor, settings: FlowSettings, context: TimestepContext
) -> Tensor:
    """Place sigmoid(mean + std n) on the ladder. A positive `logit_mean` means less
    noise.

    Source: Esser et al. 2024, arXiv:2403.03206, eq. 19; musubi-tuner, `weighting_scheme
    logit_normal`.
    """
    return torch.sigmoid(settings.logit_mean + settings.logit_std * normal)


def mode(uniform: Tensor, settings: FlowSettings, context: TimestepContext) -> Tensor:
    """Place 1 - u - s (cos^2(pi u / 2) - 1 + u) on the ladder, s = `mode_scale`: the
    middle more often, or the ends.

    Source: Esser et al. 2024, arXiv:2403.03206, eq. 20; musubi-tuner, `weighting_scheme
    mode`.

    >>> mode(torch.tensor([0.0, 0.5, 1.0]), FlowSettings(), TimestepContext())
    tensor([1.0000, 0.5000, 0.0000])
    """
    bend = torch.cos(math.pi / 2 * uniform).square() - 1 + uniform
    return 1 - uniform - settings.mode_scale * bend


# ------------------------------------------------------------ the table


@dataclass(frozen=True)
class TimestepSampling:
    """One value of `train.timestep_type`.

    >>> sampling = sampling_for(FlowSettings(timestep_type="sigmoid"))
    >>> sampling.base is torch.randn, sampling.discrete
    (True, False)
    """

    base: Callable[..., Tensor]
    """Draws the standard random number: torch.randn or torch.rand."""

    transform: Callable[[Tensor, FlowSettings, TimestepContext], Tensor]
    """To t, or with `ladder` to a place on it: 0 at pure noise, 1 past the last
    level."""

    discrete: bool = False
    """t is one of 1000 levels."""

    increasing: bool | None = True
    """Whether a larger random number means more noise; None: neither more nor less."""


LADDER = TimestepSampling(torch.rand, even, discrete=True, increasing=False)

SAMPLINGS = {
    "sigmoid": TimestepSampling(torch.randn, sigmoid),
    "linear": LADDER,
    "uniform": TimestepSampling(torch.rand, even),
    "weighted": LADDER,
    "sigma": LADDER,
    "shift": TimestepSampling(torch.randn, shift),
    "model_shift": TimestepSampling(torch.randn, model_shift),
    "flux_shift": TimestepSampling(torch.randn, flux_shift),
    "logsnr": TimestepSampling(torch.randn, logsnr, increasing=False),
    "lognorm_blend": TimestepSampling(torch.rand, lognorm_blend),
    "qinglong_flux": TimestepSampling(torch.rand, qinglong_flux, increasing=None),
    "qinglong_model": TimestepSampling(torch.rand, qinglong_model, increasing=None),
}
"""By `timestep_type`."""

SIGMA_DENSITIES = {
    "logit_normal": TimestepSampling(
        torch.randn, logit_normal, discrete=True, increasing=False
    ),
    "mode": TimestepSampling(torch.rand, mode, discrete=True),
}
"""Sampling for `timestep_type sigma`, by `weighting_scheme`."""

SAMPLING_RUN = TimestepSampling(torch.rand, inference_timesteps, increasing=False)
"""Sampling for `timestep_type shift` without a `discrete_flow_shift`."""


def sampling_for(settings: FlowSettings) -> TimestepSampling:
    """The sampling these settings choose.

    A loss weighed by a bell requires even draws, whatever `timestep_type`. Source:
    ai-toolkit, `linear_timesteps`.

    Raises KeyError for a `timestep_type` that is not in `SAMPLINGS`.
    """
    if settings.linear_timesteps:
        return SAMPLINGS["linear"]
    if (
        settings.timestep_type == "sigma"
        and settings.weighting_scheme in SIGMA_DENSITIES
    ):
        return SIGMA_DENSITIES[settings.weighting_scheme]
    if settings.timestep_type == "shift" and settings.discrete_flow_shift is None:
        return SAMPLING_RUN
    return SAMPLINGS[settings.timestep_type]


# ------------------------------------------------------------ drawing


def timesteps(base: Tensor, settings: FlowSettings, context: TimestepContext) -> Tensor:
    """t for standard random numbers of the sampling's own kind, between `min_timestep`
    and `max_timestep`.

    The whole distribution is squeezed between the two, none of it cut off. Source:
    musubi-tuner, `get_noisy_model_input_and_timesteps`.

    Raises KeyError for a `timestep_type` that is not in `SAMPLINGS`.

    >>> settings = FlowSettings(timestep_type="uniform", min_timestep=500)
    >>> timesteps(torch.tensor([0.0, 0.5]), settings, TimestepContext())
    tensor([0.5000, 0.7500])
    """
    sampling = sampling_for(settings)
    low = settings.min_timestep
    high = settings.max_timestep
    t = sampling.transform(base, settings, context)
    if not sampling.discrete:
        return t * ((high - low) / LEVELS) + low / LEVELS
    # The sum in brackets is exact; adding LEVELS first would cost a float32 t the bits
    # that tell two levels apart.
    return (
        1
        - torch.floor(t * (high - low) + (LEVELS - high)).clamp(0, LEVELS - 1) / LEVELS
    )


def timesteps_from_uniform(
    share: Tensor, settings: FlowSettings, context: TimestepContext
) -> Tensor:
    """t for uniform numbers, whatever the sampling's own kind: the same distribution,
    by its inverse.

    `content_or_style` bends the numbers here: content prefers much noise, style little.
    Source: ai-toolkit.
    """
    if settings.preserve_distribution_shape:
        return _cut_off(share, settings, context)
    sampling = sampling_for(settings)
    if settings.content_or_style != "balanced":
        noise = 1 - share**3 if settings.content_or_style == "content" else share**3
        share = noise if sampling.increasing else 1 - noise
    if sampling.base is torch.randn:
        share = torch.special.ndtri(share.clamp(SMALLEST, 1 - SMALLEST))
    return timesteps(share, settings, context)


def _cut_off(share: Tensor, settings: FlowSettings, context: TimestepContext) -> Tensor:
    """Draws as without bounds, and only between the bounds: nothing is squeezed.

    musubi-tuner's `preserve_distribution_shape` draws until it fits, at most 1000
    times; this never gives up.
    """
    low = settings.min_timestep / LEVELS
    high = settings.max_timestep / LEVELS
    whole = replace(
        settings,
        min_timestep=0.0,
        max_timestep=float(LEVELS),
        preserve_distribution_shape=False,
    )
    first, last = _shares_between(whole, context, low, high)
    return timesteps_from_uniform(first + (last - first) * share, whole, context).clamp(
        low, high
    )


@lru_cache(maxsize=1024)
def _shares_between(
    settings: FlowSettings, context: TimestepContext, low: float, high: float
) -> tuple[float, float]:
    """The first and last uniform number whose t is in [low, high], by bisection: t only
    rises or only falls."""

    def t_of(share: float) -> float:
        return float(
            timesteps_from_uniform(
                torch.tensor([share], dtype=torch.float64), settings, context
            )
        )

    rises = t_of(0.0) < t_of(1.0)

    def share_of(bound: float) -> float:
        first = 0.0
        last = 1.0
        for _ in range(50):
            middle = (first + last) / 2
            first, last = (
                (middle, last) if (t_of(middle) < bound) == rises else (first, middle)
            )
        return last

    ends = share_of(low), share_of(high)
    return min(ends), max(ends)


def draw_timestep(
    settings: FlowSettings,
    generator: torch.Generator,
    context: TimestepContext,
    stratum: int | None = None,
    parts: int | None = None,
) -> float:
    """One sample's t in [0, 1], from its own generator.

    stratum: which of the equal parts of the distribution t comes from; None: all of it.
    parts: their number, by default `num_timestep_buckets`.
    """
    plain = (
        settings.content_or_style == "balanced"
        and not settings.preserve_distribution_shape
    )
    if stratum is None and plain:
        return float(
            timesteps(
                sampling_for(settings).base(1, generator=generator), settings, context
            )
        )
    share = torch.rand(1, generator=generator, dtype=torch.float64)
    if stratum is not None:
        share = (stratum + share) / (parts or settings.num_timestep_buckets)
    return float(timesteps_from_uniform(share, settings, context))


def strata(samples: int, buckets: int, generator: torch.Generator) -> list[int]:
    """The stratum of each position of an epoch: each equally often, give or take one,
    in random order.

    Returns `samples` numbers in [0, buckets). Source: musubi-tuner,
    `num_timestep_buckets`.

    >>> sorted(strata(4, buckets=2, generator=torch.Generator().manual_seed(0)))
    [0, 0, 1, 1]
    """
    rest = torch.randperm(buckets, generator=generator)[: samples % buckets]
    stratum = torch.cat([torch.arange(samples - len(rest)) % buckets, rest])
    return stratum[torch.randperm(samples, generator=generator)].tolist()
