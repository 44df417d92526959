"""The end of a run by a number, and that a resume stops at the same step."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from tests.running import check_every
from toolkit.contracts.training import TrainState
from toolkit.files.run_files import VALIDATION_IMAGES
from toolkit.train.callbacks.early_stopping import EarlyStopping, stop_reason
from toolkit.train.run import Callback

LOSSES = [5.0, 4.0, math.nan, 3.0, 2.0, 1.0, math.inf, 0.5, 0.5, 0.5, 9.0, 0.1]
"""Of steps 1, 2, ..."""


def settings(**changes) -> SimpleNamespace:
    return SimpleNamespace(**{"metric": "loss", "below": 2.5, "smooth": 3} | changes)


def stop_step(
    run,
    callback: EarlyStopping,
    result,
    values=LOSSES,
    restart_after: int | None = None,
) -> int | None:
    """The step at which the hook ends the run when the loop tells it these losses."""
    callback.on_start(run)
    for step, value in enumerate(values, start=1):
        run.state.step = step
        callback.on_metrics(run, result(step, loss=value, grad_norm=2 * value))
        callback.after_step(run)
        if run.early_stop_reason:
            return step
        if step == restart_after:
            run.state = TrainState(
                step=step, extra=json.loads(json.dumps(run.state.extra))
            )
            callback = EarlyStopping(callback.settings)
            callback.on_start(run)
    return None


@pytest.fixture
def run(toy):
    return toy.run(50)


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    check_every(monkeypatch, 1)


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, 6),  # (3 + 2 + 1) / 3
        ({"below": 2.0}, 8),  # the mean of step 6 is 2: not below; (2 + 1 + 0.5) / 3 is
        ({"smooth": 1, "below": 0.6}, 8),
        ({"metric": "grad_norm", "below": 5.0}, 6),
        ({"metric": "t_mean", "below": 0.8}, 3),
        ({"metric": "told_apart", "below": 0.8}, None),  # a number that no step has
        ({"smooth": 11}, None),  # never so many finite values
        ({"below": 0.0}, None),
    ],
)
def test_it_ends_where_the_mean_of_the_finite_values_is_low_enough(
    run, result, changes: dict, step
) -> None:
    assert stop_step(run, EarlyStopping(settings(**changes)), result) == step


def test_it_looks_at_the_mean_every_ten_steps(
    run, result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert stop_step(run, EarlyStopping(settings()), result) == 10


@pytest.mark.parametrize("broken_off", range(1, 8))
def test_a_resume_stops_at_the_same_step(run, result, broken_off: int) -> None:
    assert (
        stop_step(
            run, EarlyStopping(settings(below=2.0)), result, restart_after=broken_off
        )
        == 8
    )


def test_values_that_are_measured_now_and_then_count_by_their_name(
    said: list[str], run, result
) -> None:
    callback = EarlyStopping(settings(metric="validation/loss", smooth=2))
    callback.on_start(run)
    for step, loss in [(10, 3.0), (20, math.nan), (30, 2.5), (40, 2.0)]:
        run.state.step = step
        callback.on_metrics(run, result(step, loss=0.0))
        callback.on_validation(
            run, {"validation/loss": loss, "validation/loss_t0.5": 0.0}
        )
        callback.after_step(run)
        assert bool(run.early_stop_reason) is (step == 40)
    assert said == [
        "stop_when: the mean validation/loss of 2, 2.25, is below 2.5 at step 40: the run is finished"
    ]
    assert run.status_fields == {"reason": run.early_stop_reason}


def test_what_is_measured_at_the_end_does_not_change_what_ended_the_run(
    run, result
) -> None:
    callback = EarlyStopping(
        settings(metric="validation/loss", smooth=1),
        on_stop=lambda run: callback.on_validation(run, {"validation/loss": 99.0}),
    )
    callback.on_start(run)
    run.state.step = 7
    callback.on_validation(run, {"validation/loss": 1.0})
    callback.after_step(run)
    assert stop_reason(callback.settings, 7, run.state.extra)


def test_a_run_that_was_killed_after_its_last_state_ends_at_once(run, result) -> None:
    stop_step(run, EarlyStopping(settings()), result)
    run.early_stop_reason = None
    EarlyStopping(settings()).on_start(run)
    assert run.early_stop_reason
    assert run.complete


@pytest.mark.parametrize(
    "changes",
    [{"below": 1.5}, {"smooth": 4}, {"metric": "grad_norm"}],
)
def test_a_finished_run_is_not_finished_for_a_stricter_job(
    run, result, changes: dict
) -> None:
    stop_step(run, EarlyStopping(settings()), result)
    assert stop_reason(settings(), 6, run.state.extra)
    assert not stop_reason(settings(**changes), 6, run.state.extra)


@pytest.mark.parametrize("section", [None, settings()])
def test_a_state_that_knows_nothing_of_it_is_not_finished(section) -> None:
    assert stop_reason(section, 40, {}) is None


def test_another_metric_begins_with_no_values(run, result) -> None:
    stop_step(run, EarlyStopping(settings(below=0.0)), result)
    EarlyStopping(settings(metric="grad_norm")).on_start(run)
    assert run.state.extra["stop_when"] == {"metric": "grad_norm", "values": []}


def test_the_loop_ends_as_finished_and_hooks_hear_it(toy, recorder) -> None:
    class AtThree(Callback):
        def after_step(self, run) -> None:
            run.early_stop_reason = "low enough" if run.state.step == 3 else None

    run = toy.run(50, callbacks=[AtThree(), recorder])
    assert toy.train(run, toy.step(run))
    assert recorder.calls == ["start", "step 1", "step 2", "step 3", "end True"]


def test_the_numbers_of_all_steps_are_there_when_it_looks(toy) -> None:
    """The loop may keep numbers on the device for some steps: a look fetches them
    first."""
    ends = []
    for fetch_every in (1, 7):
        run = toy.run(60, callbacks=[EarlyStopping(settings(below=0.5))])
        run.metrics_sync_interval = fetch_every
        assert toy.train(run, toy.step(run))
        ends.append((run.state.step, run.state.extra["stop_when"]))
    assert ends[0] == ends[1]
    assert 0 < ends[0][0] < 60


@pytest.mark.parametrize("broken_off", [None, 30, 70, 90])
def test_it_ends_once_no_later_validation_will_be_better(
    said: list[str], toy, broken_off: int | None
) -> None:
    """The losses of nine images fall until step 30 and rise after it; a resume stops at
    the same step."""
    toy.folder.mkdir()
    run = toy.run(200)
    callback = EarlyStopping(settings(below=None, metric="validation/loss"))
    callback.on_start(run)
    for step in range(0, 200, 10):
        run.state.step = step
        mean = 1 + abs(step - 30) / 100
        losses = {
            f"{image}": [mean + image, mean + image + 0.001 * ((step + image) % 3)]
            for image in range(9)
        }
        with (run.folder / VALIDATION_IMAGES).open("a") as file:
            file.write(
                json.dumps({"step": step, "of": "these", "losses": losses}) + "\n"
            )
        callback.on_validation(run, {"validation/loss": mean})
        callback.after_step(run)
        if run.early_stop_reason:
            break
        if step == broken_off:
            run.state = TrainState(
                step=step, extra=json.loads(json.dumps(run.state.extra))
            )
            callback = EarlyStopping(callback.settings)
            callback.on_start(run)
    assert step == 80
    assert (
        "stop_when: at 95% confidence no later step will be better than step 30 by "
        in said[-1]
    )
    assert stop_reason(callback.settings, 80, run.state.extra)
