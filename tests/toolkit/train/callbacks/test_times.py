"""What a step and a sample image took is kept at the end of a run."""

from __future__ import annotations

import pytest

from toolkit.memory.kept_times import RunTimes
from toolkit.train.callbacks import times
from toolkit.train.callbacks.times import LEAST_STEPS, TimesCallback


@pytest.fixture
def kept() -> list[RunTimes]:
    return []


def train(
    toy,
    result,
    callback: TimesCallback,
    steps: list[float],
    compiled: int = 0,
    finished: bool = True,
) -> None:
    run = toy.run(100)
    for step, seconds in enumerate(steps, 1):
        callback.on_metrics(
            run, result(step, step_s=seconds, compiled=step <= compiled)
        )
    callback.on_end(run, finished)


@pytest.mark.parametrize("finished", [True, False])
def test_the_median_of_the_steps_is_kept(toy, result, kept, finished: bool) -> None:
    train(
        toy,
        result,
        TimesCallback(kept.append),
        [60.0, *[2.0] * LEAST_STEPS, 3.0],
        finished=finished,
    )
    assert kept == [RunTimes(2.0, 0.0)]


def test_steps_that_compile_do_not_count(toy, result, kept) -> None:
    train(
        toy,
        result,
        TimesCallback(kept.append),
        [40.0] * 30 + [2.0] * LEAST_STEPS,
        compiled=30,
    )
    assert kept == [RunTimes(2.0, 0.0)]


@pytest.mark.parametrize(
    ("steps", "compiled"), [(LEAST_STEPS - 1, 0), (LEAST_STEPS + 1, 2)]
)
def test_of_too_few_steps_nothing_is_kept(
    toy, result, kept, steps: int, compiled: int
) -> None:
    train(toy, result, TimesCallback(kept.append), [2.0] * steps, compiled=compiled)
    assert kept == []


def test_the_time_of_the_images_is_kept_with_it(
    toy, result, kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 50.0, 100.0, 107.0, 200.0, 208.0])
    monkeypatch.setattr(times.time, "perf_counter", lambda: next(clock))
    callback = TimesCallback(kept.append)
    draw = callback.timed(lambda index: f"image {index}")
    assert [draw(index) for index in range(3)] == ["image 0", "image 1", "image 2"]
    train(toy, result, callback, [2.0] * LEAST_STEPS)
    assert kept == [RunTimes(2.0, 8.0)]
