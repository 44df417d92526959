"""Schedules that follow the loss, or a number that is measured now and then."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

import pytest
import torch

from tests.processes import in_processes
from tests.toolkit.train.conftest import Recorder, Toy
from toolkit.contracts.training import StepLosses
from toolkit.optim.schedules import build_schedule
from toolkit.system.distributed import ProcessGroup
from toolkit.train.callbacks.early_stopping import PlateauCallback
from toolkit.train.checkpoint_state import load_state, snapshot_state
from toolkit.train.checkpoint_store import write_checkpoint
from toolkit.train.run import Callback, Run

EVERY = 3
SETTINGS = {"every": EVERY, "patience": 0, "factor": 0.5, "threshold": 0.3}


def plateau_run(
    toy: Toy, steps: int, callbacks: list[Callback], fetch_every: int = 1, **settings
) -> Run:
    schedule = build_schedule("plateau", steps, params=SETTINGS | settings, lr=0.1)
    run = toy.run(steps, callbacks=callbacks, schedule=schedule)
    run.metrics_sync_interval = fetch_every
    return run


@pytest.mark.parametrize("fetch_every", [1, 7])
def test_the_rate_follows_the_mean_loss_of_so_many_steps(
    toy: Toy, fetch_every: int
) -> None:
    recorder = Recorder()
    run = plateau_run(toy, 21, [PlateauCallback(), recorder], fetch_every)
    toy.train(run, toy.step(run))
    by_hand, rates = build_schedule("plateau", 21, params=SETTINGS, lr=0.1), []
    for first in range(0, 21, EVERY):
        rates += [0.1 * by_hand(first)] * EVERY
        by_hand.observe(
            fmean(result.loss for result in recorder.results[first : first + EVERY])
        )
    assert [result.lr for result in recorder.results] == rates
    assert len(set(rates)) > 2


@pytest.mark.parametrize("stop", [1, 3, 8, 9])
def test_a_resume_goes_on_with_the_same_bits(
    toy: Toy, tmp_path: Path, stop: int
) -> None:
    whole = plateau_run(toy, 15, [PlateauCallback()])
    toy.train(whole, toy.step(whole))
    first = plateau_run(toy, stop, [PlateauCallback()], fetch_every=5)
    toy.train(first, toy.step(first))
    path = write_checkpoint(tmp_path / "states", snapshot_state(first), keep=1)
    second = plateau_run(toy, 15, [PlateauCallback()])
    load_state(path, second)
    toy.train(second, toy.step(second))
    assert torch.equal(toy.weight(second), toy.weight(whole))
    assert (
        second.roles["network"].schedule.state_dict()
        == whole.roles["network"].schedule.state_dict()
    )


def test_losses_that_are_no_numbers_are_left_out(toy: Toy) -> None:
    recorder = Recorder()
    run = plateau_run(toy, 6, [PlateauCallback(), recorder])
    good = toy.step(run)

    def step(batch) -> StepLosses:
        losses = good(batch).by_role["network"]
        return StepLosses(
            {"network": losses * (math.nan if run.state.step == 1 else 1.0)}
        )

    toy.train(run, step)
    finite = [result.loss for result in recorder.results if not result.skipped]
    assert len(finite) == 5
    first, second = fmean(finite[:2]), fmean(finite[2:])
    best = second if second < 0.7 * first else first
    assert run.roles["network"].schedule.state_dict()["best"] == pytest.approx(best)


def test_a_number_that_is_measured_now_and_then_is_followed_alone(toy: Toy) -> None:
    callback = PlateauCallback()
    run = plateau_run(toy, 6, [callback], metric="validation/loss")
    toy.train(run, toy.step(run))
    schedule = run.roles["network"].schedule
    assert schedule.state_dict()["best"] is None and run.state.extra == {}
    for value in (2.0, 2.0, 2.0):
        callback.on_validation(
            run, {"validation/loss": value, "validation/loss_t0.5": 1.0}
        )
    assert (schedule.state_dict()["best"], schedule(6)) == (2.0, 0.25)


def test_all_processes_have_the_rates_of_the_first(tmp_path: Path) -> None:
    def work(process_group: ProcessGroup) -> tuple[list[float], list[float]]:
        toy, recorder = Toy(tmp_path), Recorder()
        callbacks = (
            [PlateauCallback(), recorder]
            if process_group.is_main_process
            else [recorder]
        )
        run = plateau_run(toy, 12, callbacks)
        run.process_group = process_group
        toy.train(run, toy.step(run))
        return toy.weight(run).tolist(), [result.lr for result in recorder.results]

    first, second = in_processes(2, work)
    assert first == second and len(set(first[1])) > 1
