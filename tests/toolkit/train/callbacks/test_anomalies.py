"""Anomalies of whole runs: injected times, losses, gradients and samples become one
line, one event, and no stop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.toolkit.train.test_anomalies import image_of, woven
from toolkit.config.sections.train import CompileConfig
from toolkit.contracts.data import BatchSpec
from toolkit.contracts.training import StepLosses
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.files.run_files import EventLog
from toolkit.memory.compiling import Programs
from toolkit.system.readings import Reading
from toolkit.train import metrics_buffer
from toolkit.train.anomalies import RunawayLoss
from toolkit.train.callbacks.anomalies import AnomalyCallback
from toolkit.train.callbacks.metrics import append_row
from toolkit.train.roles import step_in_backward
from toolkit.train.run import Run, Sampled


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metrics_buffer, "time", clock)
    return clock


@pytest.fixture
def watched(toy, clock: Clock) -> Callable[..., tuple[Run, list[dict]]]:
    """Trains a toy run with the callback; returns it, and its events of the kind
    `warning`. stops_at: the step at which compiled programs are given up."""

    def train(
        steps: int,
        step_s: Callable[[int], float] = lambda step: 1.0,
        data_s: Callable[[int], float] = lambda step: 0.0,
        loss: Callable[[int, str], float] = lambda step, name: 1.0,
        watch: bool = True,
        stops_at: int | None = None,
        **settings,
    ) -> tuple[Run, list[dict]]:
        toy.folder.mkdir(exist_ok=True)
        events = toy.folder / "events.jsonl"
        callback = AnomalyCallback(
            EventLog(events).add,
            **settings,
            read=lambda device: Reading(),
            clock=clock.monotonic,
        )
        run = toy.run(steps, callbacks=[callback] if watch else [], lr=0.001)
        run.programs = Programs(CompileConfig())
        losses = toy.step(run)

        def load(specs: Iterable[BatchSpec]) -> Iterator[LatentBatch]:
            for batch in toy.load(specs):
                clock.now += data_s(run.state.step)
                yield batch

        def step(batch: LatentBatch) -> StepLosses:
            clock.now += step_s(run.state.step)
            if run.state.step == stops_at:
                run.programs.stop()
            weights_B = torch.tensor(
                [loss(run.state.step, name) for name in batch.names]
            )
            return StepLosses({"network": losses(batch).by_role["network"] * weights_B})

        assert toy.train(run, step, load=load)
        rows = (
            [json.loads(line) for line in events.read_text().splitlines()]
            if events.exists()
            else []
        )
        return run, [row for row in rows if row["event"] == "warning"]

    return train


@pytest.mark.parametrize("stops_at", [pytest.param(None, marks=pytest.mark.slow), 80])
def test_uncompiled_blocks_are_not_slow_compared_with_compiled_ones(
    watched, said: list[str], stops_at
) -> None:
    _, warnings = watched(
        200, step_s=lambda step: 1.0 if step < 80 else 3.0, stops_at=stops_at
    )
    assert bool(warnings) is (stops_at is None)


@pytest.mark.slow
def test_slow_data_are_one_line_in_log_and_events(watched, said: list[str]) -> None:
    _, (event,) = watched(150, data_s=lambda step: 2.0 if step > 90 else 0.0)
    assert event["kind"] == "step_time" and event["cause"].startswith(
        "waiting for data"
    )
    assert 91 < event["step"] < 115 and event["remedy"]
    (line,) = said
    assert line.startswith(
        f"step {event['step']}: {event['message']}. Cause: {event['cause']}."
    )


@pytest.mark.slow
def test_large_batches_are_no_slow_steps(watched, said: list[str]) -> None:
    """Each third batch of the toy is smaller: 1 sample of 7."""
    _, events = watched(150, step_s=lambda step: (8.0, 8.0, 0.5)[step % 3])
    assert events == [] and said == []


@pytest.mark.slow
def test_the_loss_of_one_dataset_that_runs_away_is_reported(watched) -> None:
    odd = {"image_1.png", "image_3.png", "image_5.png"}

    def loss(step: int, name: str) -> float:
        return 30.0 if step > 150 and name in odd else 1.0

    _, (event,) = watched(
        260, loss=loss, dataset_of=lambda name: "odd" if name in odd else "even"
    )
    assert (
        event["kind"] == "loss"
        and "dataset odd" in event["message"]
        and event["step"] > 150
    )


LORA, FULL = ("lora_A.weight", "lora_B.weight"), ("weight", "bias")


@pytest.mark.parametrize(
    ("fault", "names", "fused"),
    [
        (None, LORA, True),
        ("absent", LORA, False),
        ("absent", FULL, True),
        ("zero", FULL, False),
    ],
)
def test_a_layer_without_a_gradient_is_reported(
    toy, said: list[str], fault: str | None, names: tuple[str, str], fused: bool
) -> None:
    toy.folder.mkdir()
    run = toy.run(60, callbacks=[AnomalyCallback(lambda *_, **__: None)], lr=0.001)
    role = run.roles["network"]
    for layer in ("blocks.0.to_q", "blocks.1.to_q"):
        role.parameters |= {
            f"{layer}.{names[0]}": nn.Parameter(torch.ones(3)),
            f"{layer}.{names[1]}": nn.Parameter(torch.zeros(3)),
        }
    role.optimizer.add_param_group({"params": list(role.parameters.values())[1:]})
    if fused:
        role.optimizer_step = step_in_backward(role, accumulates=False)
    base = toy.step(run)

    def step(batch: LatentBatch) -> StepLosses:
        losses = dict(base(batch).by_role)
        for layer, is_broken in (
            ("blocks.0.to_q", fault is not None),
            ("blocks.1.to_q", False),
        ):
            one, other = (role.parameters[f"{layer}.{name}"] for name in names)
            if not (is_broken and fault == "absent"):
                losses["network"] = losses["network"] + (one * (other - 1)).sum() * (
                    0.0 if is_broken else 1.0
                )
        return StepLosses(losses)

    assert toy.train(run, step)
    cause = {"absent": "does not depend", "zero": "exactly zero"}
    assert len(said) == (fault is not None)
    assert not fault or (
        "1 of 3 layers (blocks.0.to_q)" in said[0] and cause[fault] in said[0]
    )


def test_training_is_the_same_bit_for_bit(watched, toy) -> None:
    weights = []
    for watch in (False, True):
        generator = torch.get_rng_state()
        run, _ = watched(40, data_s=lambda step: 5.0 if step > 20 else 0.0, watch=watch)
        weights.append(toy.weight(run).detach())
        assert torch.equal(generator, torch.get_rng_state())
    assert torch.equal(*weights)


def write_set(folder: Path, step: int, kind: str) -> dict:
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    files = [f"{step:09d}_{index}.png" for index in range(2)]
    for index, file in enumerate(files):
        image = image_of(
            0 if kind == "alike" else step + index,
            "noise" if kind == "noise" else "image",
        )
        (woven(image) if kind == "texture" else image).save(folder / "samples" / file)
    return {"step": step, "epoch": 0, "files": files, "prompts": ["a", "b"]}


@pytest.mark.parametrize(
    ("kind", "message", "resumes"),
    [("noise", "are noise", False), ("alike", "all alike", True)],
)
def test_samples_are_compared_with_those_before_also_after_a_resume(
    toy, said, kind, message, resumes
) -> None:
    events, run = EventLog(toy.folder / "events.jsonl"), toy.run(50)
    toy.folder.mkdir()
    for step in (0, 10, 20):
        if step == 0 or (step == 20 and resumes):
            callback = AnomalyCallback(lambda *_, **__: None)
        if step:  # the set of step 0 comes before it
            callback.on_start(run)
        details = write_set(toy.folder, step, kind if step == 20 else "image")
        events.add("sample", **details)
        callback.on_sample(run, Sampled.of(toy.folder, details))
        assert len(said) == (step == 20)
    assert message in said[0]


def test_the_first_samples_of_a_run_are_looked_at_when_they_come(toy, said) -> None:
    callback, run = AnomalyCallback(lambda *_, **__: None), toy.run(50)
    first = write_set(toy.folder, 0, "image")
    callback.on_sample(run, Sampled.of(toy.folder, first))  # before the run begins
    for file in (toy.folder / "samples").iterdir():
        file.unlink()
    callback.on_start(run)
    second = write_set(toy.folder, 10, "noise")
    callback.on_sample(run, Sampled.of(toy.folder, second))
    assert len(said) == 1 and "are noise" in said[0]


def test_texture_of_samples_and_of_the_validation_is_compared_with_the_first(
    toy, said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a resume at step 20."""
    monkeypatch.setattr(RunawayLoss, "rises", lambda self: False)
    toy.folder.mkdir()
    events, run = EventLog(toy.folder / "events.jsonl"), toy.run(50)
    for step in (0, 10, 20):
        if step in (0, 20):
            callback = AnomalyCallback(lambda *_, **__: None)
        if step:
            callback.on_start(run)
        details = write_set(toy.folder, step, "texture" if step == 20 else "image")
        events.add("sample", **details)
        callback.on_sample(run, Sampled.of(toy.folder, details))
        losses = {
            "validation/loss": 1.0,
            "validation/texture": 2.0 if step == 20 else 0.8,
        }
        append_row(toy.folder / "validation.jsonl", {"step": step, **losses})
        callback.on_validation(run, losses)
    assert [line.partition(":")[2].partition(" turn")[0] for line in said] == [
        " the sample images", " the images that the validation predicts"
    ]  # fmt: skip


@pytest.mark.slow
def test_a_full_disk_does_not_end_the_run(toy, watched, said: list[str]) -> None:
    toy.folder.mkdir()
    (toy.folder / "events.jsonl").mkdir()
    # the test reads the file, after the run has ended
    with pytest.raises(IsADirectoryError):
        watched(150, step_s=lambda step: 3.0 if step > 90 else 1.0)
    assert sum("times as long" in line for line in said) == 1
