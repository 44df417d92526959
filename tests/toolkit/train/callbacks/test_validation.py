"""When a run is validated, what is written, and which weights are kept."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.running import lines
from toolkit.contracts.training import TrainState
from toolkit.errors import RunError
from toolkit.files.run_files import VALIDATION
from toolkit.train.callbacks.validation import Validation, ValidationCallback
from toolkit.train.run import Callback, Interval
from toolkit.train.run_reader import read_losses_by_image


class Measuring(Callback):
    """A hook whose losses are given by step, and what it says and saves."""

    def __init__(
        self,
        run,
        losses: dict[int, float] | None = None,
        every: int = 2,
        identity: str = "these",
    ) -> None:
        self.run = run
        self.losses = losses or {}
        self.heard: list[tuple[int, float]] = []
        self.logged: list[tuple[int, dict]] = []
        self.weights: list[float] = []
        self.full = self.stopped = False
        self.by_image: dict[str, list[float]] = {}
        validation = Validation(
            lambda stop_asked: self.measure(stop_asked), identity, lambda: self.by_image
        )
        self.callback = ValidationCallback(validation, Interval(every), self._save)
        run.callbacks = [self.callback, self]
        run.log = lambda step, values: self.logged.append((step, values))

    def measure(self, stop_asked) -> dict[str, float] | None:
        self.weights.append(self.run.roles["network"].parameters["w"][0].item())
        if self.stopped:
            return None
        loss = self.losses.get(self.run.state.step, 1.0)
        self.by_image = {letter * 64: [loss, loss / 3] for letter in "ab"}
        return {"validation/loss": loss, "validation/loss_t0.5": loss / 2}

    def _save(self, run) -> list[Path]:
        if self.full:
            raise RunError("disk full")
        path = run.folder / f"{run.name}_best.safetensors"
        path.write_text(f"weights of step {run.state.step}")
        return [path]

    def on_validation(self, run, losses: dict[str, float]) -> None:
        self.heard.append((run.state.step, losses["validation/loss"]))

    def steps(self, last: int, finished: bool = True) -> Measuring:
        """What the loop calls from the run's step to step `last`."""
        self.callback.on_start(self.run)
        for step in range(self.run.state.step + 1, last + 1):
            self.run.state.step = step
            self.callback.after_step(self.run)
        self.callback.on_end(self.run, finished)
        return self


@pytest.fixture
def run(toy):
    toy.folder.mkdir()
    return toy.run(7)


def resumed(toy, run, step: int):
    """A fresh run at a saved state of `run`."""
    fresh = toy.run(run.steps)
    fresh.state = TrainState(step=step, extra=json.loads(json.dumps(run.state.extra)))
    return fresh


def losses_by_image(run) -> dict[int, dict[str, float]]:
    return read_losses_by_image(run.folder)


def best(run) -> str:
    return (run.folder / "toy_best.safetensors").read_text()


def test_before_the_first_step_at_the_interval_and_after_the_last(run) -> None:
    measuring = Measuring(run, {4: 0.5, 6: math.nan}).steps(7)
    assert [line["step"] for line in lines(run.folder / VALIDATION)] == [0, 2, 4, 6, 7]
    assert lines(run.folder / VALIDATION)[2] == {
        "step": 4,
        "validation/loss": 0.5,
        "validation/loss_t0.5": 0.25,
    }
    assert lines(run.folder / VALIDATION)[3]["validation/loss"] is None
    assert (
        [step for step, _ in measuring.heard]
        == [step for step, _ in measuring.logged]
        == [0, 2, 4, 6, 7]
    )
    assert measuring.logged[2][1] == {
        "validation/loss": 0.5,
        "validation/loss_t0.5": 0.25,
    }


@pytest.mark.parametrize(
    ("last", "finished", "steps"), [(7, True, [0, 7]), (5, False, [0])]
)
def test_with_no_interval_only_before_and_after_and_not_at_a_stop(
    run, last: int, finished: bool, steps
) -> None:
    Measuring(run, every=0).steps(last, finished)
    assert [line["step"] for line in lines(run.folder / VALIDATION)] == steps


def test_the_weights_of_the_lowest_finite_loss_are_kept_and_named(
    said: list[str], run
) -> None:
    Measuring(run, {0: math.nan, 2: 0.75, 4: 0.5, 6: 0.5, 7: 0.625}).steps(7)
    assert best(run) == "weights of step 4"  # of equal ones the first
    assert run.status_fields["best"] == {
        "step": 4,
        "loss": 0.5,
        "file": "toy_best.safetensors",
    }
    assert [note for note in said if "best" in note] == [
        "validation loss 0.75000 at step 2, the best so far",
        "validation loss 0.50000 at step 4, the best so far",
    ]


def test_the_best_so_far_survives_a_resume(toy, run) -> None:
    Measuring(run, {2: 0.25}).steps(3, finished=False)
    again = resumed(toy, run, step=3)
    Measuring(again, {4: 0.5, 6: 0.375}).steps(7)
    assert again.status_fields["best"]["step"] == 2
    assert best(again) == "weights of step 2"
    assert [line["step"] for line in lines(again.folder / VALIDATION)] == [
        0,
        2,
        4,
        6,
        7,
    ]


def test_lines_of_steps_that_are_trained_again_are_cut(toy, run) -> None:
    Measuring(run).steps(2, finished=False)
    saved = resumed(toy, run, step=2)
    Measuring(resumed(toy, run, step=2)).steps(6, finished=False)
    Measuring(saved, {4: 0.5}).steps(4, finished=False)
    assert [
        (line["step"], line["validation/loss"])
        for line in lines(run.folder / VALIDATION)
    ] == [
        (0, 1.0),
        (2, 1.0),
        (4, 0.5),
    ]


def test_the_losses_of_each_image_are_kept(
    toy, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each validation whose losses are finite; a resume trains steps again, and
    other images begin anew."""
    Measuring(run, {2: math.nan}).steps(6, finished=False)
    assert sorted(losses_by_image(run)) == [0, 4, 6]
    again = resumed(toy, run, step=4)
    Measuring(again, {6: 0.5}).steps(6, finished=False)
    found = losses_by_image(run)
    assert sorted(found) == [0, 4, 6]
    assert found[6] == {"a" * 12: pytest.approx(1 / 3), "b" * 12: pytest.approx(1 / 3)}
    monkeypatch.setattr("toolkit.train.callbacks.validation.MOST_LOSSES", 3)
    Measuring(resumed(toy, run, step=6), {6: 0.25}, identity="others").steps(7)
    assert list(losses_by_image(run)) == [6, 7] and [*losses_by_image(run)[7]] == [
        "a" * 12
    ]


def test_a_run_that_was_killed_before_its_first_save_begins_its_file_anew(
    toy, run
) -> None:
    Measuring(run).steps(3, finished=False)
    Measuring(toy.run(7)).steps(0, finished=False)
    assert [line["step"] for line in lines(run.folder / VALIDATION)] == [0]


def test_what_a_stop_broke_off_is_measured_when_the_run_goes_on(toy, run) -> None:
    """So that the state of every later step is the same as without the stop."""
    stopped = Measuring(run)
    stopped.steps(3, finished=False)
    stopped.stopped = True
    run.state.step = 4
    stopped.callback.after_step(run)
    assert run.state.extra["validation"]["step"] == 2
    again = resumed(toy, run, step=4)
    Measuring(again, {4: 0.5}).steps(7)
    whole = toy.run(7)
    Measuring(whole, {4: 0.5}).steps(7)
    assert again.state.extra == whole.state.extra
    assert [line["step"] for line in lines(run.folder / VALIDATION)] == [0, 2, 4, 6, 7]


def test_a_step_is_measured_once(toy, run) -> None:
    measuring = Measuring(run).steps(6, finished=True)  # due, and the end
    assert [step for step, _ in measuring.heard] == [0, 2, 4, 6]
    assert Measuring(resumed(toy, run, step=6)).steps(6, finished=True).heard == []


def test_the_last_step_is_measured_before_it_is_saved(run) -> None:
    callback = Measuring(run).callback
    callback.on_start(run)
    run.state.step = 7
    callback.after_step(run)
    assert run.state.extra["validation"]["step"] == 7


def test_losses_of_other_images_are_not_compared(said: list[str], toy, run) -> None:
    Measuring(run, {2: 0.25}).steps(3, finished=False)
    again = resumed(toy, run, step=3)
    Measuring(again, {4: 0.5}, identity="others").steps(4, finished=False)
    assert again.status_fields["best"]["step"] == 4
    assert any("starts over" in note for note in said)


def test_a_best_file_that_cannot_be_written_does_not_end_the_run(
    said: list[str], run
) -> None:
    measuring = Measuring(run, {2: 0.5, 4: 0.75})
    measuring.full = True
    measuring.steps(3, finished=False)
    assert "the best weights could not be saved: disk full" in said
    assert "best" not in run.status_fields
    measuring.full = False
    run.state.step = 4
    measuring.callback.after_step(run)
    assert run.status_fields["best"]["step"] == 4


def test_memory_that_runs_out_comes_with_advice(run) -> None:
    def measure(stop_asked):
        raise torch.OutOfMemoryError("CUDA out of memory")

    run.oom_hint = lambda: "Lower the resolution."
    measuring = Measuring(run)
    measuring.measure = measure
    with pytest.raises(RunError, match=r"validation of step 0\. Lower the resolution"):
        measuring.callback.on_start(run)


def test_a_best_file_that_is_gone_is_not_named(toy, run) -> None:
    Measuring(run, {2: 0.25}).steps(3, finished=False)
    (run.folder / "toy_best.safetensors").unlink()
    again = resumed(toy, run, step=3)
    Measuring(again).steps(3, finished=False)
    assert again.status_fields["best"] == {"step": 2, "loss": 0.25, "file": None}


def test_the_averages_are_measured_and_the_weights_are_the_same_after_it(toy) -> None:
    toy.folder.mkdir()
    plain, watched = (toy.run(9, ema_decay=0.9) for _ in range(2))
    measuring = Measuring(watched, every=4)
    for run in (plain, watched):
        assert toy.train(run, toy.step(run))
    assert toy.weight(plain).tolist() == toy.weight(watched).tolist()
    assert measuring.weights[-1] == watched.roles["network"].ema.averages["w"][0].item()
    assert measuring.weights[-1] != toy.weight(watched)[0].item()
