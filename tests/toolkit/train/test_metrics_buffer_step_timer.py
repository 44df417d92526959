from types import SimpleNamespace

import pytest

from toolkit.train.metrics_buffer import StepTimer


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    time = SimpleNamespace(now=100.0)
    monkeypatch.setattr("toolkit.train.metrics_buffer.time", SimpleNamespace(monotonic=lambda: time.now))
    return time


def test_every_second_belongs_to_one_account(now) -> None:
    timer = StepTimer()
    now.now += 1
    with timer.track("data"):
        now.now += 2
    with timer.track("outside"):
        now.now += 4
        with timer.track("step"):
            now.now += 8
        now.now += 16
    now.now += 32
    assert timer.lap() == (1 + 2 + 8 + 32, 2)


def test_a_lap_begins_where_the_last_one_ended(now) -> None:
    timer = StepTimer()
    with timer.track("outside"):
        now.now += 1
        assert timer.lap() == (0, 0)
        now.now += 2
    now.now += 4
    assert timer.lap() == (4, 0)


def test_an_error_within_a_block_closes_its_account(now) -> None:
    timer = StepTimer()
    with pytest.raises(OSError), timer.track("outside"):
        now.now += 1
        raise OSError
    now.now += 2
    assert timer.lap() == (2, 0)
