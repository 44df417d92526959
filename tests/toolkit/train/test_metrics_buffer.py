"""When the numbers of steps leave the device, and that it makes no difference to the
training."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tests.toolkit.train.test_loop import broken_for
from toolkit.contracts.training import StepLosses
from toolkit.errors import RunError
from toolkit.optim.ema import Ema
from toolkit.optim.optimizers import build_optimizer, state_tensors
from toolkit.train import metrics_buffer
from toolkit.train.callbacks.metrics import MetricsCallback
from toolkit.train.metrics_buffer import begin_to_host
from toolkit.train.run import Callback, Run

NAN = float("nan")


@pytest.fixture(autouse=True)
def only_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, it is fetched by the count of steps."""
    monkeypatch.setattr("toolkit.train.metrics_buffer.METRICS_SYNC_SECONDS", math.inf)


def run_with(
    toy,
    optimizer: str,
    steps: int,
    fetch_every: int,
    callbacks: list[Callback],
    **settings,
) -> Run:
    """The toy's run with an optimizer of the program and an average."""
    run = toy.run(steps, callbacks=callbacks, max_grad_norm=0.5, **settings)
    role = run.roles["network"]
    role.optimizer = build_optimizer(optimizer, role.parameters.values(), 0.1, {})
    role.ema = Ema(role.parameters, 0.9)
    run.metrics_sync_interval = fetch_every
    run.folder.mkdir(parents=True, exist_ok=True)
    return run


class SavesAt(Callback):
    """Settles at one step, as a save does, and keeps what it would save."""

    included_in_step_time = False

    def __init__(self, step: int) -> None:
        self.step = step
        self.saved: list[object] = []

    def after_step(self, run: Run) -> None:
        if run.state.step == self.step:
            run.flush_metrics()
            role = run.roles["network"]
            tensors, plain = state_tensors(role.optimizer, list(role.parameters))
            weights = {name: p.detach().clone() for name, p in role.parameters.items()}
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            self.saved = [
                weights,
                tensors,
                plain,
                role.ema.updates,
                asdict(run.state),
                lines(run.folder),
            ]


def lines(folder: Path) -> list[str]:
    """metrics.jsonl without the times."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    kept = [
        {
            k: v
            for k, v in json.loads(line).items()
            if k not in ("step_s", "data_s", "time")
        }
        for line in text.splitlines()
    ]
    return [json.dumps(line) for line in kept]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "prodigy", "schedulefree_adamw"])
def test_fetching_seldom_changes_neither_weights_nor_lines(
    toy, tmp_path: Path, optimizer: str
) -> None:
    seen = []
    for fetch_every in (1, 7):
        toy.folder = tmp_path / str(fetch_every)
        saving = SavesAt(11)
        run = run_with(toy, optimizer, 16, fetch_every, [MetricsCallback(), saving])
        toy.train(run, broken_for(toy, run, {3}))
        saved_weights, saved_state, *rest = saving.saved
        assert len(rest[-1]) == 11, "no line is missing before a save"
        assert (
            sum("skipped" in line for line in lines(run.folder))
            == run.state.skipped
            > 2
        )
        state, plain = state_tensors(run.roles["network"].optimizer, ["w"])
        tensors = [
            saved_weights["w"],
            *saved_state.values(),
            toy.weight(run),
            *state.values(),
        ]
        seen.append((tensors, [rest, plain, lines(run.folder), asdict(run.state)]))
    assert all(
        torch.equal(one, other)
        for one, other in zip(seen[0][0], seen[1][0], strict=True)
    )
    assert seen[0][1] == seen[1][1]


def test_results_come_in_order_at_the_interval_before_a_save_and_at_the_end(
    toy,
) -> None:
    told: list[str] = []

    class Tells(SavesAt):
        def on_metrics(self, run, result) -> None:
            told.append(f"result {result.step}")

        def after_step(self, run) -> None:
            told.append(f"step {run.state.step}")
            super().after_step(run)

        def on_end(self, run, finished) -> None:
            told.append("end")

    run = run_with(toy, "adamw", 6, 3, [MetricsCallback(), Tells(4)])
    toy.train(run, toy.step(run))
    first = ["step 1", "step 2", "result 1", "result 2", "result 3", "step 3"]
    assert told == [
        *first,
        "step 4",
        "result 4",
        "step 5",
        "step 6",
        "result 5",
        "result 6",
        "end",
    ]


def test_what_was_done_before_a_failure_is_told(toy, recorder) -> None:
    run = run_with(toy, "adamw", 6, 100, [recorder])
    good = toy.step(run)

    def step(batch) -> StepLosses:
        if run.state.step == 4:
            raise OSError("gone")
        return good(batch)

    with pytest.raises(OSError, match="gone"):
        toy.train(run, step)
    assert [result.step for result in recorder.results] == [1, 2, 3, 4]


@pytest.mark.parametrize("save_at", [4, 5])
def test_three_skipped_steps_end_the_run_before_anything_is_saved_after_them(
    toy, recorder, save_at: int
) -> None:
    saving = SavesAt(save_at)
    run = run_with(toy, "adamw", 30, 100, [recorder, saving])
    with pytest.raises(RunError, match=r"3 steps in a row \(up to step 4\).*image"):
        toy.train(run, _after(toy, run, 1))
    assert not saving.saved
    assert [result.step for result in recorder.results] == [1, 2, 3, 4]


def _after(toy, run: Run, good_steps: int):
    """The toy's step, whose loss is not a number after so many steps."""
    good = toy.step(run)

    def step(batch) -> StepLosses:
        losses = good(batch)
        bad = run.state.step >= good_steps
        return StepLosses(
            {"network": losses.by_role["network"] * (NAN if bad else 1.0)}
        )

    return step


# ------------------------------------------------------------ waiting for the device


def test_a_fetch_that_blocks_says_so(
    toy, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = metrics_buffer.begin_to_host

    def blocked(tensors):
        arrived = begin(tensors)

        def values():
            for _ in range(3000):
                if said:
                    return arrived()
                time.sleep(0.01)
            raise AssertionError("nothing was said")

        return values

    monkeypatch.setattr(metrics_buffer, "BLOCKED_FETCH_S", 0.01)
    monkeypatch.setattr(metrics_buffer, "begin_to_host", blocked)
    run = toy.run(1)
    toy.train(run, toy.step(run))
    assert (
        said[0]
        == "step 1: the device has not answered for 0.01 s. See what `nvidia-smi` says."
    )


def test_one_fetch_brings_tensors_of_any_shape_and_type() -> None:
    tensors = [
        torch.tensor([1, 2]),
        torch.tensor(True),
        torch.tensor([[0.5], [0.25]]),
        torch.tensor(NAN),
    ]
    *exact, (broken,) = begin_to_host(tensors)()
    assert exact == [[1.0, 2.0], [1.0], [0.5, 0.25]] and math.isnan(broken)
    assert begin_to_host([])() == []
