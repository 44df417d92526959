import pytest
import torch

from toolkit.device import DTYPES, pick_device


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A machine with so many CUDA devices, and with or without Apple's."""

    def of(cuda: int, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return of


@pytest.mark.parametrize(
    ("cuda", "mps", "wanted", "chosen"),
    [
        (1, False, "auto", "cuda:0"),
        (0, True, "auto", "mps"),
        (0, False, "auto", "cpu"),
        (2, False, "cuda:1", "cuda:1"),
        (1, False, "cuda", "cuda"),
        (2, False, "cpu", "cpu"),
        (0, True, "mps", "mps"),
    ],
)
def test_the_wanted_device_is_taken_without_a_word(machine, cuda: int, mps: bool, wanted: str, chosen: str) -> None:
    machine(cuda, mps)
    notes: list[str] = []
    assert pick_device(wanted, notes.append) == torch.device(chosen)
    assert notes == []


@pytest.mark.parametrize(("cuda", "wanted"), [(0, "cuda:0"), (0, "cuda"), (1, "cuda:1"), (0, "mps")])
def test_a_device_that_is_not_there_gives_one_warning_and_the_cpu(machine, cuda: int, wanted: str) -> None:
    machine(cuda)
    notes: list[str] = []
    assert pick_device(wanted, notes.append) == torch.device("cpu")
    (note,) = notes
    assert wanted in note and "CPU" in note


def test_compute_dtypes_are_those_of_torch() -> None:
    assert all(getattr(torch, name) is dtype for name, dtype in DTYPES.items())
