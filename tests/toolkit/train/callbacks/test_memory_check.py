"""The prediction is held against the measurement once, after the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.contracts.training import TrainState
from toolkit.train.callbacks.memory_check import (
    MemoryEstimateCheck,
    comparison,
    peak_resident,
)
from toolkit.train.run import Run


def run_at(step: int) -> Run:
    return Run(
        "r",
        Path("."),
        steps=9,
        grad_accum_steps=1,
        seed=1,
        roles={},
        state=TrainState(step=step),
    )


@pytest.fixture
def heard(said: list[str]) -> dict[str, list[Any]]:
    return {"notes": said, "events": []}


def steps(
    heard: dict[str, list[Any]], measured: int, begin: int = 0, quiet: bool = False
) -> None:
    # A resumed run has the optimizer's state from the beginning: 3 GB more.
    def predict(resumed: bool) -> int:
        return 13 * 10**9 if resumed else 10 * 10**9

    callback, run = (
        MemoryEstimateCheck(predict, lambda: measured, not quiet),
        run_at(begin),
    )
    run.event = lambda name, **details: heard["events"].append((name, details))
    callback.on_start(run)
    for _ in range(3):
        run.state.step += 1
        callback.after_step(run)


def test_what_was_predicted_and_measured_is_told_once(heard) -> None:
    steps(heard, measured=int(10.5e9))
    assert heard["notes"] == ["memory at the first step: 10.50 GB, predicted 10.00 GB"]
    assert heard["events"] == [
        (
            "memory",
            {"step": 1, "predicted_bytes": 10 * 10**9, "measured_bytes": int(10.5e9)},
        )
    ]


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (12.5e9, ": 25% more than predicted"),
        (8e9, ": 20% less than predicted"),
        (9.2e9, "GB"),
    ],
)
def test_more_than_a_tenth_is_said(heard, measured: float, words: str) -> None:
    steps(heard, int(measured))
    assert heard["notes"][0].endswith(words)


@pytest.mark.parametrize(
    ("predicted", "measured", "words"),
    [
        (0.07e9, 0.18e9, ""),
        (1.0e9, 1.5e9, ""),  # the largest error that is not mentioned
        (1.0e9, 1.6e9, ": 60% more than predicted"),
        (70.8e9, 59.7e9, ": 16% less than predicted"),
    ],
)
def test_a_difference_is_mentioned_where_it_is_large_in_both_ways(
    predicted: float, measured: float, words: str
) -> None:
    assert comparison(int(predicted), int(measured)) == words


def test_a_resumed_run_has_the_optimizers_state(heard) -> None:
    steps(heard, measured=13 * 10**9, begin=4)
    assert heard["events"][0][1] == {
        "step": 5,
        "predicted_bytes": 13 * 10**9,
        "measured_bytes": 13 * 10**9,
    }


def test_without_a_note_there_is_the_event(heard) -> None:
    steps(heard, measured=1, quiet=True)
    assert (heard["notes"], len(heard["events"])) == ([], 1)


def test_the_peak_of_the_process_does_not_fall() -> None:
    before = peak_resident()
    torch.ones(2 * 10**7)
    assert peak_resident() >= max(before, 10**8)
