"""When something is due."""

from __future__ import annotations

from toolkit.train.hooks.intervals import due


def test_it_is_due_at_the_multiples_from_the_start_on() -> None:
    assert [step for step in range(1, 13) if due(step, 3)] == [3, 6, 9, 12]
    assert [step for step in range(1, 13) if due(step, 3, start=6)] == [6, 9, 12]
    assert [step for step in range(1, 13) if due(step, 3, start=7)] == [9, 12]


def test_zero_is_never() -> None:
    assert not any(due(step, 0) for step in range(13))
