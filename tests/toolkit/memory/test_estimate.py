"""What a memory plan says: the largest phase, the GPUs it fits, what would make it
smaller."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from toolkit.memory.estimate import GB
from toolkit.plan.memory import Machine, MemoryEstimate, Phase, machine_of
from toolkit.system import device


def plan(device: float, host: float = 1.0, on_device: bool = True) -> MemoryEstimate:
    """Two phases, of which the second is larger."""
    phases = (
        Phase("encoding", {"text encoder": GB}),
        Phase("training", {"context": GB // 2, "weights": int((device - 0.5) * GB)}),
    )
    return MemoryEstimate(phases, on_device, {"process baseline": int(host * GB)})


def test_the_largest_phase_decides_and_the_smallest_card_is_named() -> None:
    assert [plan(size).card() for size in (2, 5, 12, 12.1, 47.9, 80.1)] == [
        4,
        6,
        12,
        16,
        48,
        None,
    ]
    words = plan(21.9).render()
    assert words == (
        "memory: peak 21.9 GB on the GPU (training: weights 21.4, context 0.50): fits a 24 GB GPU; "
        "1.0 GB of main memory"
    )
    assert ": fits an 80 GB GPU;" in plan(79).render()
    assert "does not fit 4, 6, 8, 12, 16, 24, 48, 80 GB GPUs" in plan(81).render()


def test_on_the_cpu_there_is_no_card() -> None:
    on_host = MemoryEstimate(
        (Phase("training", {"process baseline": GB // 2, "weights": GB}),),
        on_device=False,
    )
    assert (
        on_host.render()
        == "memory: peak 1.5 GB (training: weights 1.0, the program itself 0.50)"
    )
    assert on_host.card() is None
    assert on_host.to_json().keys() == {"host_bytes", "phases", "notes"}


def test_what_encoding_takes_is_not_sure() -> None:
    words = MemoryEstimate(
        (Phase("encoding", {"text encoder": 9 * GB}),), True
    ).render()
    assert "(encoding, if not cached yet: text encoder 9.0)" in words


def test_what_tensors_take_is_without_the_context_and_the_gaps() -> None:
    parts = {"context": GB, "weights": 2 * GB, "activations": 3 * GB, "gaps": GB // 4}
    assert (
        MemoryEstimate((Phase("training", parts),), True).allocated("training")
        == 5 * GB
    )
    assert (
        MemoryEstimate((Phase("training", parts),), False).allocated("training")
        == 6.25 * GB
    )
    assert plan(21.9).allocated("training") == int(21.4 * GB)
    assert plan(21.9).allocated("encoding", "training") == int(21.4 * GB)
    assert plan(21.9).allocated("encoding") == GB


def test_the_json_has_all_phases_in_bytes() -> None:
    found = plan(15.5).to_json()
    assert (found["device_bytes"], found["device_phase"], found["fits_cards_gb"]) == (
        15.5 * GB,
        "training",
        [16, 24, 48, 80],
    )
    assert (
        found["phases"]["encoding"] == {"text encoder": GB}
        and found["host_bytes"] == GB
    )


def test_the_machine_is_the_card_and_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        device, "pick_device", lambda wanted, quiet: torch.device("cuda", 0)
    )
    properties = SimpleNamespace(total_memory=24 * 10**9, major=8, minor=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert machine_of("auto") == Machine("cuda", 24 * 10**9, capability=8)


def test_without_a_card_it_is_the_main_memory() -> None:
    machine = machine_of("cpu")
    assert machine.kind == "cpu" and machine.limit > 10**9
