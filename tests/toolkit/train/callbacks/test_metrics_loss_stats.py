"""Means of the loss."""

from __future__ import annotations

from math import inf, nan

import pytest

from toolkit.train.callbacks.metrics import AVERAGE_OVER, LossByTimestep, RunningLoss


def test_the_recent_mean_is_over_the_latest_steps() -> None:
    averages = RunningLoss()
    assert averages.recent() is None
    for step in range(1, 11):
        averages.add(0, float(step))
    assert averages.recent() == 5.5
    for _ in range(AVERAGE_OVER):
        averages.add(0, 2.0)
    assert averages.recent() == 2.0


def test_an_epoch_is_known_when_the_next_one_begins() -> None:
    averages = RunningLoss()
    said = [averages.add((step - 1) // 3, float(step)) for step in range(1, 8)]
    assert said == [None, None, None, 2.0, None, None, 5.0]
    assert averages.of_epoch() == 7.0


@pytest.mark.parametrize("loss", [nan, inf, None])
def test_what_is_no_number_does_not_count(loss) -> None:
    averages = RunningLoss()
    averages.add(0, 2.0)
    averages.add(0, loss)
    assert averages.recent() == averages.of_epoch() == 2.0


def test_an_epoch_without_a_finite_loss_has_no_mean() -> None:
    averages = RunningLoss()
    assert [averages.add(0, nan), averages.add(1, 1.0)] == [None, None]


def test_samples_fall_into_the_band_of_their_noise_level() -> None:
    bands = LossByTimestep()
    bands.add((0.0, 0.05, 0.95, 1.0), (1.0, 3.0, 5.0, 7.0))
    bands.add((0.3,), (9.0,))
    assert bands.pop_means() == {"0.0-0.1": 2.0, "0.3-0.4": 9.0, "0.9-1.0": 6.0}


def test_each_take_begins_anew_and_empty_bands_say_nothing() -> None:
    bands = LossByTimestep()
    bands.add((0.5,), (1.0,))
    bands.pop_means()
    bands.add((0.7,), (2.0,))
    assert bands.pop_means() == {"0.7-0.8": 2.0}
    assert bands.pop_means() == {}


def test_samples_that_are_not_finite_do_not_count() -> None:
    bands = LossByTimestep()
    bands.add((0.5, 0.5, nan), (nan, 2.0, 3.0))
    assert bands.pop_means() == {"0.5-0.6": 2.0}
