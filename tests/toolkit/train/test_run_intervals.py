"""When something is due."""

from __future__ import annotations

from math import ceil

import pytest

from toolkit.contracts.training import TrainState
from toolkit.data.batches.epoch_order import EpochSource
from toolkit.train.accumulation import accumulation_steps
from toolkit.train.run import Interval, due


def steps_of(toy, interval: Interval, accumulation: int, last: int = 30) -> list[int]:
    """The steps up to `last` at which the interval is due, of a run that trains 3
    micro-batches per epoch."""
    found = []
    planned = accumulation_steps(
        EpochSource(toy.epoch_batches, toy.load).iterate(None), accumulation
    )
    done = 0
    for step, accumulation_step in zip(range(1, last + 1), planned, strict=False):
        # a new run at each step: nothing but the state is remembered
        run = toy.run(last, accumulation=accumulation)
        run.state = TrainState(
            step=step,
            epochs_before=done,
            epochs_done=(done := done + accumulation_step.epochs_ended),
        )
        if interval.due(run):
            found.append(step)
    return found


def test_steps_are_due_at_the_multiples_from_the_start_on(toy) -> None:
    assert [step for step in range(1, 13) if due(step, 3)] == [3, 6, 9, 12]
    assert steps_of(toy, Interval(3), 1, last=12) == [3, 6, 9, 12]
    assert steps_of(toy, Interval(3, start=6), 1, last=12) == [6, 9, 12]
    assert steps_of(toy, Interval(3, start=7), 1, last=12) == [9, 12]


@pytest.mark.parametrize("accumulation", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_an_epoch_is_due_at_the_first_step_that_has_completed_it(
    toy, epochs: int, accumulation: int
) -> None:
    """Epoch e of 3 micro-batches is complete when 3 e are trained; a window over two
    ends is due once."""
    ends = {ceil(3 * epoch / accumulation) for epoch in range(epochs, 100, epochs)}
    assert steps_of(toy, Interval(epochs=epochs), accumulation) == sorted(
        step for step in ends if step <= 30
    )


def test_epochs_too_are_due_from_the_start_on_and_never_before_the_first_step(
    toy,
) -> None:
    assert steps_of(toy, Interval(epochs=1, start=7), 1, last=12) == [9, 12]
    assert not Interval(epochs=1).due(toy.run(5))


def test_never_is_never(toy) -> None:
    assert steps_of(toy, Interval(), 2) == []
    assert not any(due(step, 0) for step in range(13))


@pytest.mark.parametrize(
    "interval",
    [Interval(3), Interval(4), Interval(3, start=7), Interval(epochs=1), Interval()],
    ids=str,
)
def test_what_is_still_to_come_are_the_steps_that_are_due_and_the_last(
    toy, interval: Interval
) -> None:
    planned = {*steps_of(toy, interval, 1, last=12), 12}
    run = toy.run(12)
    run.batches_per_epoch = 3
    for step in range(13):
        run.state = TrainState(step=step)
        assert interval.coming(run) == len([each for each in planned if each > step]), (
            step
        )
