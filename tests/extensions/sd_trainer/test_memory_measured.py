"""A run's memory is held against its plan: the machine it runs on, and the event of a whole job."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from extensions.sd_trainer.memory_inputs import group_items
from extensions.sd_trainer.memory_measured import memory_callback
from extensions.sd_trainer.memory_plan import plan_memory
from tests.extensions.sd_trainer.test_memory_plan import grouped, item, phase, section
from toolkit.memory.estimate import MemoryEstimate, machine_of
from toolkit.system import device
from toolkit.train.callbacks.watchdog import peak_resident
from toolkit.train.interface import TrainState

CARD = torch.device("cuda", 0)


def after_first_step(hook, step: int = 0) -> None:
    run = SimpleNamespace(state=TrainState(step=step))
    hook.on_start(run)
    run.state.step += 1
    hook.after_step(run)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A GPU of 24 GB that has had 22 GB of tensors at once since its peak was set back."""
    state = {"resets": 0, "peak": 22 * 10**9}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: state.update(resets=state["resets"] + 1))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: state["peak"])
    monkeypatch.setattr(device, "pick_device", lambda wanted, quiet: CARD)
    properties = SimpleNamespace(total_memory=24 * 10**9, major=8, minor=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return state


def first_step(found: MemoryEstimate, name: str = "first step") -> int:
    parts = phase(found, name).device
    return sum(parts.values()) - parts["context"] - parts.get("gaps", 0)


@pytest.mark.parametrize("level", ["none", "full"])
def test_on_a_card_tensors_are_held_against_the_plan_of_the_chosen_level(said: list[str], cuda, level: str) -> None:
    job, events = section(train={"gradient_checkpointing": "auto"}), []

    def event(name: str, **details: object) -> None:
        events.append(details)

    [callback] = memory_callback(job, group_items(job, (item(),)), lambda: level, CARD, event)
    assert cuda["resets"] == 1
    after_first_step(callback)
    planned = plan_memory(*grouped(job), machine_of(job.device), level)
    assert events == [{"step": 1, "predicted_bytes": first_step(planned), "measured_bytes": cuda["peak"]}]
    assert said[0].startswith("memory at the first step: 22.00 GB, predicted ")


def test_a_resumed_run_is_held_against_a_step_with_the_optimizers_state(cuda) -> None:
    job, events = section(), []
    [callback] = memory_callback(
        job, group_items(job, (item(),)), lambda: "full", CARD, lambda name, **details: events.append(details)
    )
    after_first_step(callback, step=7)
    planned = plan_memory(*grouped(job), machine_of(job.device), "full")
    assert events[0]["predicted_bytes"] == first_step(planned, "training")


def test_samples_before_the_first_step_belong_to_its_peak(cuda) -> None:
    sample = {"samples": [{"prompt": "a"}], "width": 4096, "height": 4096}
    job, events = section(sample=sample), []
    [callback] = memory_callback(
        job, group_items(job, (item(256, 0),)), lambda: "full", CARD, lambda name, **d: events.append(d)
    )
    after_first_step(callback)
    planned = plan_memory(*grouped(job, item(256, 0)), machine_of(job.device), "full")
    assert events[0]["predicted_bytes"] == first_step(planned, "sampling") > first_step(planned)


def test_the_peak_of_the_process_does_not_fall() -> None:
    before = peak_resident()
    torch.ones(2 * 10**7)
    assert peak_resident() >= max(before, 10**8)


@pytest.mark.slow
def test_a_job_on_the_cpu_leaves_the_event(run_py, write_job, trainer, make_pictures, tmp_path: Path) -> None:
    changes = {"train": {"steps": 1}, "training_folder": str(tmp_path / "out"), "device": "cpu"}
    result = run_py(write_job(trainer(make_pictures(tmp_path / "a", "a"), **changes)))
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in next((tmp_path / "out").rglob("events.jsonl")).read_text().splitlines()]
    [found] = [line for line in lines if line["event"] == "memory"]
    # Nearly all of it is the program itself, whose libraries differ from build to build.
    assert 0.4 < found["predicted_bytes"] / found["measured_bytes"] < 1.4
    assert "memory at the first step" not in result.stdout
