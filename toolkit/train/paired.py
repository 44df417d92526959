"""Which validations of a run differ, and whether a later one can still be better: the
images, the noise and the noise levels are the same each time, so losses are compared
image by image.

The unit is the image: its losses at several noise levels and sizes are correlated, and
are averaged first. Intervals are Student's t intervals for the mean of paired
differences, wider on the side to which the differences are skewed.

`callbacks.early_stopping` asks for the forecast; tools compare the files of a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from statistics import fmean, stdev, variance

from toolkit.config.sections.train import LEAST_IMAGES, LEAST_LATER

CONFIDENCE = 0.95

LossesByImage = Mapping[str, float]
"""Image -> its loss, the mean over noise levels and sizes."""


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences with its interval.

    >>> Difference(mean=-0.02, half=0.01).resolved
    True
    """

    mean: float
    half: float
    """From the mean to the end of the interval on the side of 0; infinite with fewer
    than LEAST_IMAGES images."""

    @property
    def resolved(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.half


def difference(
    one: LossesByImage,
    other: LossesByImage,
    confidence: float = CONFIDENCE,
    comparisons: int = 1,
) -> Difference:
    """The mean of `one` - `other` over the images of both, with its interval.
    confidence: of all `comparisons` intervals together (Bonferroni).

    Images that only one of them has are left out. Without a common image the mean is
    NaN and the interval infinite.

    >>> difference({"a": 0.5, "b": 0.25}, {"a": 0.25})
    Difference(mean=0.25, half=inf)
    """
    differences = [loss - other[image] for image, loss in one.items() if image in other]
    if not differences:
        return Difference(math.nan, math.inf)
    mean = fmean(differences)
    return Difference(
        mean,
        _half(differences, (1 - confidence) / 2 / comparisons, -1 if mean > 0 else 1),
    )


def _half(values: Sequence[float], tail: float, side: int) -> float:
    """From the mean to the lower (side -1) or upper (1) end of its interval: t times
    the standard error, or more where the values are skewed to that side. tail:
    probability beyond that end.

    A small sample of skewed values mostly lacks those far out, so that its mean lies
    short of the true one and its standard deviation is too small. Source: Hall 1992,
    JRSS B 54, 221-228, inverse of the cubic transformation of t.
    """
    count = len(values)
    mean = fmean(values)
    if count < LEAST_IMAGES:
        return math.inf
    deviation = stdev(values)
    if not deviation:
        return 0.0
    width = t_quantile(1 - tail, count - 1) / math.sqrt(count)
    cubes = sum(((value - mean) / deviation) ** 3 for value in values)
    skew = side * cubes * count / ((count - 1) * (count - 2))
    if skew > 0:
        width = max(
            width, 3 / skew * (1 - math.cbrt(1 - skew * (width + skew / (6 * count))))
        )
    return width * deviation


@dataclass(frozen=True)
class AsGood:
    """The result of a comparison of checkpoints, which are named by their steps.

    >>> worse = Difference(0.02, 0.01)
    >>> alike = Difference(0.001, 0.01)
    >>> AsGood(200, {100: worse, 200: Difference(0.0, 0.0), 300: alike}).steps
    (200, 300)
    """

    lowest: int
    """The step with the lowest mean loss."""

    differences: Mapping[int, Difference]
    """Step -> its loss minus the loss of `lowest`. The intervals hold for all steps
    together."""

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that are not worse than the lowest within the interval, the
        earliest first: the one whose true loss is the lowest is among them with this
        confidence."""
        steps = [
            step
            for step, against_lowest in self.differences.items()
            if not against_lowest.resolved
        ]
        return tuple(steps)

    @property
    def earliest(self) -> int:
        """The earliest of `steps`, which is the one to use."""
        return self.steps[0]


def as_good_as_the_lowest(
    losses: Mapping[int, LossesByImage],
    confidence: float = CONFIDENCE,
    candidates: Iterable[int] | None = None,
) -> AsGood | None:
    """Compares the checkpoints with the one of the lowest mean loss; None with fewer
    than LEAST_IMAGES images.

    losses: step -> losses. candidates: the steps that are compared; None: all. Source:
    Hsu 1984, Annals of Statistics 12(3), "multiple comparisons with the best", with
    Bonferroni's bound.
    """
    steps = sorted(losses if candidates is None else set(candidates) & set(losses))
    if not steps or len(losses[steps[0]]) < LEAST_IMAGES:
        return None
    lowest = min(steps, key=lambda step: fmean(losses[step].values()))
    others = max(1, len(steps) - 1)
    differences = {
        step: difference(losses[step], losses[lowest], confidence, others)
        for step in steps
    }
    return AsGood(lowest, differences)


@dataclass(frozen=True)
class Forecast:
    """How much lower the loss can still become.

    >>> Forecast(best=500, gain=0.001, resolvable=0.004).is_over
    True
    """

    best: int
    """The step of the lowest mean loss so far."""

    gain: float
    """Upper bound of how far the rest of the run lowers the loss below the loss of
    `best`; below 0: it stays higher."""

    resolvable: float
    """The least difference that these images show: half of the interval between two
    validations."""

    @property
    def is_over(self) -> bool:
        """Whether no later checkpoint will be better than the best by what these images
        show."""
        return self.gain <= self.resolvable


def forecast(losses: Mapping[int, LossesByImage], end: int) -> Forecast | None:
    """Extends the line through the validations after the best one to the step `end`;
    None where it cannot be known: fewer than LEAST_IMAGES images or LEAST_LATER
    validations after the best one.

    losses: step -> losses of the same images, of all validations so far. The bounds of
    all validations until `end` hold together (Bonferroni), with CONFIDENCE. A bound has
    two parts, each with its own t, added as squares: the spread of the images' own
    forecasts, and the spread of the validations' means around the line, which is that
    of the weights and the same for all images. Source of the sum: Graybill and Wang
    1980, JASA 75, 869-873.
    """
    steps = sorted(losses)
    means = {step: fmean(losses[step].values()) for step in steps}
    best = min(steps, key=lambda step: means[step])
    later = [step for step in steps if step > best]
    images = list(losses[best])
    if len(images) < LEAST_IMAGES or len(later) < LEAST_LATER:
        return None
    middle = fmean(later)
    spread = sum((step - middle) ** 2 for step in later)
    weights = [
        1 / len(later) + (end - middle) * (step - middle) / spread for step in later
    ]
    weighted_steps = list(zip(weights, later, strict=True))
    gains = []
    for image in images:
        predicted = sum(w * losses[step][image] for w, step in weighted_steps)
        gains.append(losses[best][image] - predicted)
    looks = math.ceil((end - steps[0]) * (len(steps) - 1) / (steps[-1] - steps[0]))
    tail = (1 - CONFIDENCE) / max(1, looks)
    scatter = _scatter(later, [means[step] for step in later]) * math.sqrt(
        sum(w * w for w in weights)
    )
    half = math.hypot(
        _half(gains, tail, 1), t_quantile(1 - tail, len(later) - 2) * scatter
    )
    variances = [
        variance([losses[best][i] - losses[step][i] for i in images]) for step in later
    ]
    between = fmean(variances)
    resolvable = t_quantile((1 + CONFIDENCE) / 2, len(images) - 1) * math.sqrt(
        between / len(images)
    )
    return Forecast(best, fmean(gains) + half, resolvable)


def _scatter(steps: Sequence[int], means: Sequence[float]) -> float:
    """The standard deviation of means around their line, larger where neighbours are
    alike: then they say less.

    Their correlation r counts as (1 + r) / (1 - r) in the variance of a sum. Around a
    fitted line it is estimated too low, by (2 + 4 r) / n; here 4 / n is added, its
    value at r = 0.5. Source of the bias: van Giersbergen 2005, Economics Letters 89,
    75-82.
    """
    middle = fmean(steps)
    level = fmean(means)
    spread = sum((step - middle) ** 2 for step in steps)
    slope = (
        sum((step - middle) * mean for step, mean in zip(steps, means, strict=True))
        / spread
    )
    residuals = [
        mean - level - slope * (step - middle)
        for step, mean in zip(steps, means, strict=True)
    ]
    squares = sum(r * r for r in residuals)
    if squares == 0:
        return 0.0
    alike = sum(a * b for a, b in pairwise(residuals)) / squares + 4 / len(steps)
    alike = min(0.8, max(0.0, alike))
    return math.sqrt(squares / (len(steps) - 2) * (1 + alike) / (1 - alike))


@lru_cache(maxsize=1024)
def t_quantile(probability: float, dof: int) -> float:
    """The quantile of Student's t distribution, for a probability in [0.5, 1), by
    bisection."""
    low = 0.0
    high = 1.0
    while _t_cdf(high, dof) < probability and high < 1e12:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if _t_cdf(middle, dof) < probability:
            low = middle
        else:
            high = middle
    return high


def _t_cdf(t: float, dof: int) -> float:
    """P(T <= t) for t >= 0. Source: Abramowitz and Stegun, Handbook of Mathematical
    Functions, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(dof))
    odd = dof % 2
    term = total = math.cos(angle) if odd else 1.0
    for number in range(2 + odd, dof - 1, 2):
        term *= (number - 1) / number * math.cos(angle) ** 2
        total += term
    inside = math.sin(angle) * total
    if odd:
        inside = 2 / math.pi * (angle + (inside if dof > 1 else 0.0))
    return 0.5 + inside / 2
