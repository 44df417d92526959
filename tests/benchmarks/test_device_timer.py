from types import SimpleNamespace

import pytest
import torch

from benchmarks import device_timer


class Event:
    """Stands for CUDA's: recorded at the moments in `now`, milliseconds."""

    now = 0.0
    late = 0.0
    """Milliseconds after which the device reaches a moment."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Event.now

    def synchronize(self) -> None:
        Event.now = float("inf")

    def query(self) -> bool:
        return self.at + Event.late <= Event.now

    def elapsed_time(self, end: "Event") -> float:
        return end.at - self.at


def test_on_cuda_the_devices_own_events_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    marks = device_timer.Marks(torch.device("cuda:0"))
    for Event.now in (0.0, 1500.0, 1750.0):
        marks.set()
    monkeypatch.setattr(Event, "late", 300.0)
    assert marks.seconds(wait=False) == []
    Event.now = 1900.0
    assert marks.seconds(wait=False) == [1.5]
    assert marks.seconds() == [1.5, 0.25]


def test_a_smaller_card_is_a_share_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda _: SimpleNamespace(total_memory=140 * 2**30),
    )
    monkeypatch.setattr(
        torch.cuda,
        "set_per_process_memory_fraction",
        lambda share, _: shares.append(share),
    )
    assert device_timer.limit_memory(torch.device("cuda:0"), 14)
    assert device_timer.limit_memory(torch.device("cuda:0"), 1000)
    assert shares == [pytest.approx(0.1), 1.0]
