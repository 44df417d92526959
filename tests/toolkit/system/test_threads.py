"""The number of threads, by given times of steps."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from toolkit.system import threads
from toolkit.system.threads import ThreadChoice, free_cores


def run(
    choice: ThreadChoice, seconds: Callable[[int, int], float], steps: int
) -> tuple[list[int], list[str]]:
    """The threads of each step, and what is said. seconds: of a step with so many
    threads, by its index."""
    used, said = [], []
    for index in range(steps):
        used.append(choice.threads)
        said.append(choice.observe(seconds(choice.threads, index)))
    return used, [line for line in said if line]


def test_threads_double_while_steps_become_faster() -> None:
    used, said = run(ThreadChoice(6), lambda count, _: 1.2 / count, 40)
    assert used[:16] == [1] * 4 + [2] * 4 + [4] * 4 + [6] * 4 and set(used[16:]) == {6}
    assert said == [
        "6 threads of the CPU: a step takes 1.2 s with 1, 0.6 s with 2, 0.3 s with 4, 0.2 s with 6"
    ]


def test_a_number_that_gains_little_is_not_taken() -> None:
    used, said = run(
        ThreadChoice(8), lambda count, _: {1: 1.0, 2: 0.6}.get(count, 0.58), 40
    )
    assert (
        set(used[12:]) == {2}
        and said[0].startswith("2 threads of the CPU")
        and 8 not in used
    )


def test_on_a_busy_machine_one_step_with_two_threads_is_all_that_is_lost() -> None:
    """The times of the report: 16.5 s a step where one thread takes 0.67."""
    used, said = run(ThreadChoice(8), lambda count, _: 0.67 if count == 1 else 16.5, 40)
    assert [count for count in used if count > 1] == [2]
    assert said == ["1 thread of the CPU: a step takes 0.67 s with 1, 16.5 s with 2"]


def test_a_machine_that_becomes_busy_ends_with_one_thread() -> None:
    busy_from = 20
    choice = ThreadChoice(2)
    used, said = run(
        choice,
        lambda count, index: 1.0 if count == 1 else 0.5 if index < busy_from else 9.0,
        60,
    )
    assert set(used[8:busy_from]) == {2}
    slow = [count for count in used[busy_from:] if count > 1]
    assert len(slow) <= threads.TRIED_STEPS and set(used[busy_from + len(slow) :]) == {
        1
    }
    assert (
        said[-1]
        == "1 thread of the CPU from here on: a step takes 1 s with 1, and took 9 s with 2"
    )


def test_steps_that_are_longer_with_any_number_keep_the_threads() -> None:
    used, said = run(
        ThreadChoice(2), lambda count, index: (1.0 if index < 20 else 4.0) / count, 80
    )
    assert len(said) == 1 and set(used[-40:]) == {2}


def test_with_one_core_nothing_is_tried() -> None:
    assert run(ThreadChoice(1), lambda count, _: 1.0, 9) == ([1] * 9, [])


@pytest.mark.parametrize(("load", "free"), [(0.2, 8), (3.4, 5), (40.0, 1)])
def test_cores_that_others_use_are_not_free(
    load: float, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert free_cores() == free


def test_a_program_without_a_number_of_threads_takes_the_free_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the environment says is kept."""
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "free_cores", lambda: before + 1)
    try:
        threads.use_free_cores()
        assert torch.get_num_threads() == before, "OMP_NUM_THREADS is set in tests"
        for name in threads.VARIABLES:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        threads.use_free_cores()
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
