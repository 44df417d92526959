"""Saving at intervals, at the end, and when a stop is asked for."""

from __future__ import annotations

import os
import threading
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from toolkit.contracts.training import TrainState
from toolkit.errors import RunError
from toolkit.files.run_files import step_stem
from toolkit.train.callbacks import save
from toolkit.train.callbacks.save import SaveCallback
from toolkit.train.run import Interval


class Saving:
    """A hook whose network file is a word, and what it says."""

    def __init__(
        self,
        every: int,
        keep: int,
        raw: bool = False,
        keep_states: int = 2,
        epochs: int = 0,
        states: str = "always",
    ) -> None:
        self.raw = raw
        self.events: list[dict] = []
        self.callback = SaveCallback(
            self._prepare, Interval(every, epochs), keep, keep_states, states
        )

    def _prepare(self, run, step: int | None):
        run.event, now = self.event, run.state.step
        return lambda: self._write(run, step, now)

    def _write(self, run, step: int | None, now: int) -> list[Path]:
        path = (
            run.folder
            / f"{run.name if step is None else step_stem(run.name, step)}.safetensors"
        )
        files = (
            [path, path.with_name(f"{path.stem}_raw.safetensors")]
            if self.raw
            else [path]
        )
        for file in files:
            file.write_text(f"weights of step {now}")
            os.utime(file, (1e9 - now,) * 2)  # newer steps look older
        return files

    def event(self, event: str, **details) -> None:
        self.events.append({"event": event, **details})

    def run_to(self, run, last: int, result, finished: bool = True) -> None:
        """What the loop would call from the run's step to step `last`."""
        self.callback.on_start(run)
        for step in range(run.state.step + 1, last + 1):
            run.state = TrainState(step=step)
            self.callback.after_step(run)
        self.callback.on_end(run, finished)


@pytest.fixture
def run(toy):
    toy.folder.mkdir()
    return toy.run(50)


def files(run) -> list[str]:
    return sorted(p.name for p in run.folder.glob("*.safetensors"))


def states(run) -> list[int]:
    return sorted(int(p.name.removeprefix("step_")) for p in run.folder.glob("state/*"))


def test_the_newest_files_stay_by_their_step_and_the_last_is_not_counted(
    said: list[str], run, result
) -> None:
    saving = Saving(every=10, keep=2)
    saving.run_to(run, 45, result)
    assert files(run) == [
        "toy.safetensors",
        "toy_000000030.safetensors",
        "toy_000000040.safetensors",
    ]
    assert (run.folder / "toy.safetensors").read_text() == "weights of step 45"
    assert (
        run.folder / "toy_000000030.safetensors"
    ).read_text() == "weights of step 30"
    assert states(run) == [40, 45]
    assert saving.events[2] == {
        "event": "save",
        "step": 30,
        "epoch": 0,
        "files": ["toy_000000030.safetensors"],
        "removed": ["toy_000000010.safetensors"],
    }
    assert saving.events[-1] == {
        "event": "save",
        "step": 45,
        "epoch": 0,
        "files": ["toy.safetensors"],
        "removed": [],
    }
    assert said[0] == "saved toy_000000010.safetensors"


@pytest.mark.parametrize(
    ("settings", "last", "steps", "kept_states"),
    [
        (
            {"every": 10, "keep": 0},
            40,
            ("_000000010", "_000000020", "_000000030", "_000000040"),
            [30, 40],
        ),
        ({"every": 0, "keep": 2}, 12, (), [12]),
        (
            {"every": 10, "keep": 1, "raw": True},
            20,
            ("_000000020", "_000000020_raw", "_raw"),
            [10, 20],
        ),
        (
            {"every": 10, "keep": 0, "states": "at_end"},
            20,
            ("_000000010", "_000000020"),
            [20],
        ),
    ],
)
def test_what_stays_of_a_whole_run(
    run, result, settings: dict, last: int, steps: tuple, kept_states: list
) -> None:
    Saving(**settings).run_to(run, last, result)
    assert files(run) == sorted(f"toy{step}.safetensors" for step in ("", *steps))
    assert states(run) == kept_states


def test_files_of_other_names_are_left_alone(run, result) -> None:
    others = [
        "toy_b_000000001.safetensors",
        "toy_1.safetensors",
        "other_000000001.safetensors",
        "toy.safetensors.bak",
    ]
    for name in others:
        (run.folder / name).touch()
    Saving(every=1, keep=1).run_to(run, 3, result)
    assert all((run.folder / name).exists() for name in others)
    assert "toy_000000002.safetensors" not in files(run)


@pytest.mark.parametrize(
    ("when", "kept"), [("always", [30, 35]), ("at_end", [35]), ("never", [])]
)
@pytest.mark.parametrize("finished", [True, False])
def test_states_can_be_written_at_the_end_alone_or_not_at_all(
    run, result, when: str, kept, finished: bool
) -> None:
    Saving(every=10, keep=0, states=when).run_to(run, 35, result, finished)
    assert states(run) == kept
    last = (
        ["toy.safetensors"]
        if finished
        else ["toy_000000035.safetensors"]
        if when == "never"
        else []
    )
    assert files(run) == sorted(
        last + [f"toy_{step:09d}.safetensors" for step in (10, 20, 30)]
    )


def test_a_stop_at_a_saved_step_writes_no_file_twice(run, result) -> None:
    saving = Saving(every=10, keep=0, states="never")
    saving.run_to(run, 20, result, finished=False)
    assert [event["step"] for event in saving.events] == [10, 20]


def epoch_saves(toy, saving: Saving, steps: int, run=None):
    """Trains to `steps` in windows of 2 of the 3 micro-batches of an epoch; resumes
    from the cursor of `run`."""
    before, run = run, toy.run(steps, accumulation=2, callbacks=[saving.callback])
    run.state = before.state if before else run.state
    toy.train(run, toy.step(run))
    return run


def test_epochs_are_saved_at_the_first_step_that_has_completed_them_and_the_event_says_which(
    toy,
) -> None:
    """Epochs of 3 micro-batches in windows of 2 end at steps 2, 3, 5, 6, 8 and 9."""
    toy.folder.mkdir()
    saving = Saving(every=0, keep=2, epochs=2)
    run = epoch_saves(toy, saving, 10)
    assert [(event["step"], event["epoch"]) for event in saving.events] == [
        (3, 2),
        (6, 4),
        (9, 6),
        (10, 6),
    ]
    assert files(run) == [
        "toy.safetensors",
        "toy_000000006.safetensors",
        "toy_000000009.safetensors",
    ]


def test_the_end_copies_no_state_that_is_on_disk_already(
    run, result, monkeypatch
) -> None:
    captured: list[int] = []
    capture = save.snapshot_state
    monkeypatch.setattr(
        save,
        "snapshot_state",
        lambda run: captured.append(run.state.step) or capture(run),
    )
    Saving(every=10, keep=1).run_to(run, 20, result)
    assert captured == [10, 20]
    assert (run.folder / "toy.safetensors").read_text() == "weights of step 20"
    assert states(run) == [10, 20]


def test_a_stop_saves_the_state_and_no_network(said: list[str], run, result) -> None:
    saving = Saving(every=10, keep=2)
    saving.run_to(run, 13, result, finished=False)
    assert files(run) == ["toy_000000010.safetensors"]
    assert states(run) == [10, 13]
    assert "step 13" in said[-1]


def test_a_stop_just_after_a_save_saves_nothing_more(
    said: list[str], run, result
) -> None:
    saving = Saving(every=10, keep=2)
    saving.run_to(run, 10, result, finished=False)
    assert len(said) == len(saving.events) == 1
    # Nothing was learned since the process began: the state it came from stays as it
    # is.
    again = Saving(every=10, keep=2)
    before = (run.folder / "state" / "step_000000010").stat().st_ino
    again.run_to(run, 10, result, finished=False)
    assert (run.folder / "state" / "step_000000010").stat().st_ino == before
    assert len(said) == 1


def test_the_network_is_written_before_the_state_that_promises_it(
    run, result, monkeypatch
) -> None:
    saving, order = Saving(every=1, keep=0), []
    write = saving._write
    saving._write = lambda *arguments: order.append("network") or write(*arguments)
    monkeypatch.setattr(
        "toolkit.train.callbacks.save.write_checkpoint",
        lambda *_: order.append("state"),
    )
    saving.run_to(run, 1, result)
    assert order[:2] == ["network", "state"]


def test_an_error_while_writing_is_raised_at_the_next_step(run, result) -> None:
    saving = Saving(every=1, keep=0)

    def fail(*_) -> list[Path]:
        raise OSError("the disk is gone")

    saving._write = fail
    saving.callback.on_start(run)
    run.state = TrainState(step=1)
    saving.callback.after_step(run)
    wait([saving.callback._writing])
    with pytest.raises(OSError, match="the disk is gone"):
        saving.callback.after_step(run)


def test_writing_goes_on_beside_the_training_and_sees_the_weights_of_its_step(
    run, result
) -> None:
    saving, may_write = Saving(every=1, keep=0), threading.Event()
    write = saving._write
    saving._write = lambda *arguments: may_write.wait(10) and write(*arguments)
    saving.callback.on_start(run)
    run.state = TrainState(step=1)
    saving.callback.after_step(run)
    assert files(run) == []  # still waiting: the step has ended all the same
    run.state = TrainState(step=2)
    may_write.set()
    saving.callback.on_end(run, finished=False)
    assert (run.folder / "toy_000000001.safetensors").read_text() == "weights of step 1"
    assert states(run) == [1, 2]


def test_without_space_a_save_is_put_off_with_a_warning_and_the_end_is_an_error(
    said: list[str], run, result, monkeypatch
) -> None:
    monkeypatch.setattr("toolkit.train.checkpoint_store._free", lambda folder: 0)
    saving = Saving(every=1, keep=0)
    saving.callback.on_start(run)
    run.state = TrainState(step=1)
    saving.callback.after_step(run)
    assert len(said) == 1 and said[0].startswith(
        "disk space is too short to save: 0 MB free"
    )
    with pytest.raises(RunError, match="could not be saved"):
        saving.callback.on_end(run, finished=True)
    assert files(run) == []


def test_without_space_for_the_final_file_alone_the_end_is_an_error(
    run, result, monkeypatch
) -> None:
    saving = Saving(every=10, keep=0)
    saving.run_to(run, 10, result, finished=False)
    monkeypatch.setattr(
        "toolkit.train.callbacks.save.free_disk_space", lambda *_: False
    )
    with pytest.raises(RunError, match="could not be saved"):
        saving.callback.on_end(run, finished=True)


def tensor_bytes(file: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(file).values())


def test_room_is_asked_for_all_that_a_save_writes(toy, result, monkeypatch) -> None:
    """At a step its file and the state, at the end the file alone if the state is
    there, at a stop the state alone."""
    asked: list[int] = []
    monkeypatch.setattr(
        "toolkit.train.callbacks.save.free_disk_space",
        lambda root, size: asked.append(size) or True,
    )
    toy.folder.mkdir()
    run = toy.run(50, momentum=0.9, ema_decay=0.5)
    role = run.roles["network"]
    role.parameters["w"].grad = torch.ones(3)
    role.optimizer.step()
    saving = Saving(every=10, keep=0)
    saving.run_to(run, 10, result)
    saving.run_to(run, 13, result, finished=False)
    weights = role.parameters["w"].nbytes
    states = [
        sum(map(tensor_bytes, run.folder.glob(f"state/step_{step:09d}/*.safetensors")))
        for step in (10, 13)
    ]
    assert states == [3 * weights] * 2  # weights, their average, the momentum
    assert asked == [states[0] + weights, weights, states[1]]
