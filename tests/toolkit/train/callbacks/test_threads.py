"""The threads of a training on a CPU: the callback, and a whole run."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit.system.threads import ThreadChoice
from toolkit.train.callbacks.threads import ThreadsCallback


def test_a_slow_step_with_two_threads_is_followed_by_steps_with_one(
    toy, result, caplog
) -> None:
    caplog.set_level(logging.INFO)
    used: list[int] = []
    callback, run = ThreadsCallback(ThreadChoice(4), used.append), toy.run(9)
    callback.on_start(run)
    for step in range(1, 10):
        callback.on_metrics(run, result(step, step_s=0.67 if used[-1] == 1 else 16.5))
    assert used == [1, 2, 1]
    assert caplog.messages == [
        "1 thread of the CPU: a step takes 0.67 s with 1, 16.5 s with 2"
    ]


def test_compiled_steps_keep_their_threads(toy, result) -> None:
    used: list[int] = []
    callback, run = ThreadsCallback(ThreadChoice(4), used.append), toy.run(9)
    callback.on_start(run)
    run.programs = SimpleNamespace(used=True)
    for step in range(1, 10):
        callback.on_metrics(run, result(step, step_s=1.0))
    assert used == [1]


@pytest.mark.parametrize(("cores", "reported"), [(1, [1]), (2, [2])])
def test_the_number_that_is_chosen_first_is_reported_once(
    toy, result, cores: int, reported: list[int]
) -> None:
    told: list[int] = []
    callback, run = (
        ThreadsCallback(ThreadChoice(cores), lambda _: None, told.append),
        toy.run(20),
    )
    callback.on_start(run)
    assert told == ([] if cores > 1 else reported)
    for step in range(1, 21):
        callback.on_metrics(run, result(step, step_s=1 / callback.choice.threads))
    assert told == reported


@pytest.mark.slow
def test_a_run_says_that_it_finds_its_threads(
    start_py, write_job, trainer, make_pictures, tmp_path: Path
) -> None:
    """Where the environment says their number, test_standard.py sees that it does
    not."""
    job = write_job(trainer(make_pictures(tmp_path / "photos", "a", "b")))
    said = start_py(job, env={"OMP_NUM_THREADS": ""}).ends_with(0)
    assert "threads of the CPU: " in said
