from types import SimpleNamespace

import pytest

from toolkit.train.clock import StepClock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    time = SimpleNamespace(now=100.0)
    monkeypatch.setattr("toolkit.train.clock.time", SimpleNamespace(monotonic=lambda: time.now))
    return time


def test_every_second_belongs_to_one_account(now) -> None:
    clock = StepClock()
    now.now += 1
    with clock.charging("data"):
        now.now += 2
    with clock.charging("outside"):
        now.now += 4
        with clock.charging("step"):
            now.now += 8
        now.now += 16
    now.now += 32
    assert clock.lap() == (1 + 2 + 8 + 32, 2)


def test_a_lap_begins_where_the_last_one_ended(now) -> None:
    clock = StepClock()
    with clock.charging("outside"):
        now.now += 1
        assert clock.lap() == (0, 0)
        now.now += 2
    now.now += 4
    assert clock.lap() == (4, 0)


def test_an_error_within_a_block_closes_its_account(now) -> None:
    clock = StepClock()
    with pytest.raises(OSError), clock.charging("outside"):
        now.now += 1
        raise OSError
    now.now += 2
    assert clock.lap() == (2, 0)
