"""Paired comparisons of validations: intervals that hold as often as they say, and
stops that wait for evidence."""

from __future__ import annotations

import math
from random import Random

import pytest

from toolkit.train.paired import as_good_as_the_lowest, difference, forecast, t_quantile


def row(*losses: float) -> dict[str, float]:
    return {str(index): loss for index, loss in enumerate(losses)}


def noisy(mean: float, seed: int, images: int = 12) -> dict[str, float]:
    """Images that differ much from each other, and little from one validation to the
    next."""
    draw = Random(seed)
    return row(*(mean + index + draw.gauss(0, 0.01) for index in range(images)))


@pytest.mark.parametrize(
    ("probability", "dof", "expected"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 7, 2.365),
        (0.995, 9, 3.250),
        (0.999, 4, 7.173),
        (0.95, 120, 1.658),
    ],
)
def test_quantiles_are_those_of_printed_tables(
    probability: float, dof: int, expected: float
) -> None:
    assert t_quantile(probability, dof) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("skewed", [-1, 0, 1])
@pytest.mark.parametrize("images", [8, 32])
def test_an_interval_holds_the_true_difference_as_often_as_it_says(
    images: int, skewed: int
) -> None:
    draw, held = Random(images), 0
    for _ in range(1000):
        values = [
            skewed * (draw.expovariate(1) - 1) or draw.gauss(0, 1)
            for _ in range(images)
        ]
        held += not difference(
            row(*(5 + value for value in values)), row(*[5.0] * images)
        ).resolved
    assert 930 <= held <= 980


def test_too_few_images_have_no_interval() -> None:
    assert difference(row(*[2.0] * 7), row(*[1.0] * 7)).half == math.inf
    assert as_good_as_the_lowest({1: row(*[2.0] * 7), 2: row(*[1.0] * 7)}) is None
    assert forecast({step: row(*[1.0 + step] * 7) for step in range(20)}, 20) is None


def test_of_files_that_are_as_good_the_earliest_is_preferred() -> None:
    found = as_good_as_the_lowest(
        {1: noisy(0.5, 1), 2: noisy(0.3, 2), 3: noisy(0.3, 3), 4: noisy(0.301, 4)}
    )
    assert (
        found.steps == (2, 3, 4) and found.earliest == 2 and found.lowest in (2, 3, 4)
    )
    assert (
        found.differences[1].mean == pytest.approx(0.2, abs=0.02)
        and found.differences[found.lowest].mean == 0
    )
    assert as_good_as_the_lowest(
        {1: noisy(0.5, 1), 2: noisy(0.3, 2)}, candidates=[1]
    ).steps == (1,)


def test_the_truly_lowest_is_among_those_named() -> None:
    """Of 10 files, with 95 % confidence for all comparisons together."""
    named = sum(
        0
        in as_good_as_the_lowest(
            {step: noisy(0.3, 100 * seed + step) for step in range(10)}
        ).steps
        for seed in range(200)
    )
    assert named >= 190


@pytest.mark.parametrize(("later", "stops"), [(4, False), (5, True)])
def test_a_stop_needs_some_validations_after_the_best(later: int, stops: bool) -> None:
    course = [0.6, 0.5, 0.4, *(0.45 + 0.05 * number for number in range(later))]
    found = forecast(
        {10 * index: noisy(mean, index) for index, mean in enumerate(course)}, 120
    )
    assert (found is not None) is stops
    if found:
        assert found.is_over and found.best == 20 and found.gain < 0


def test_losses_that_may_still_fall_below_the_best_do_not_stop_a_run() -> None:
    """One lucky validation, and a line behind it that is above it and falls."""
    course = [0.6, 0.40, *(0.55 - 0.01 * number for number in range(8))]
    losses = {10 * index: noisy(mean, index) for index, mean in enumerate(course)}
    assert not forecast(losses, 400).is_over
    assert forecast(losses, 91).is_over
