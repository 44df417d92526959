import pytest

from toolkit.optim.schedules import decay_at, initial_weight_fraction


def test_the_decay_warms_up() -> None:
    assert [decay_at(n, 0.99, warm_up=True) for n in (1, 2, 10, 889, 891, 10000)] == pytest.approx(
        [2 / 11, 3 / 12, 11 / 20, 890 / 899, 0.99, 0.99]
    )
    assert decay_at(1, 0.99, warm_up=False) == 0.99


def test_the_share_of_the_start() -> None:
    assert initial_weight_fraction(3, 0.5, warm_up=False) == pytest.approx(0.125)
    assert initial_weight_fraction(2, 0.99, warm_up=True) == pytest.approx(2 / 11 * 3 / 12)
    assert initial_weight_fraction(0, 0.99, warm_up=True) == 1.0
    assert initial_weight_fraction(100000, 0.9, warm_up=False) == 0.0


def test_a_slow_average_without_warm_up_still_holds_the_start() -> None:
    assert initial_weight_fraction(1000, 0.999, warm_up=False) == pytest.approx(0.999**1000)
