from contextlib import nullcontext

import pytest
import torch

from toolkit.errors import UserError
from toolkit.memory.offload import HostBlock
from toolkit.system import device
from toolkit.system.device import (
    check_device,
    configure_cuda,
    pick_device,
    to_device,
    use_device,
)
from toolkit.system.distributed import ProcessGroup
from toolkit.system.nvidia import NvidiaFacts


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
        (0, False, "cuda:0", ""),
    ],
)
def test_the_wanted_device_is_taken_and_of_the_first_gpu_one_warning_names_the_cpu(
    said: list[str], machine, cuda: int, mps: bool, wanted: str, chosen: str
) -> None:
    machine(cuda, mps)
    assert pick_device(wanted) == torch.device(chosen or "cpu")
    assert [wanted in note and "CPU" in note for note in said] == (
        [] if chosen else [True]
    )


@pytest.mark.parametrize(
    ("cuda", "wanted"), [(0, "cuda"), (1, "cuda:1"), (0, "cuda:1"), (0, "mps")]
)
def test_a_chosen_device_that_is_not_there_is_an_error_with_what_to_write(
    machine, cuda: int, wanted: str
) -> None:
    machine(cuda)
    with pytest.raises(
        UserError,
        match=rf"^device: {wanted}: no such device .*'device: auto' .* Likely cause: \S",
    ):
        pick_device(wanted, quiet=True)


@pytest.mark.parametrize(
    ("cuda", "wanted", "model_bytes", "words"),
    [
        (
            0,
            "auto",
            57_700_000_000,
            "device: auto: .* a model of 58 GB is trained on the CPU only .* Likely cause: ",
        ),
        (
            1,
            "cuda:1",
            57_700_000_000,
            "device: cuda:1: .* the last CUDA device here is cuda:0",
        ),
        (
            0,
            "mps",
            57_700_000_000,
            "device: mps: .* mps is a device of Apple's machines",
        ),
        (0, "cpu", 57_700_000_000, ""),
        (0, "cuda:0", 1_999_999_999, ""),
        (0, "cuda", 1_999_999_999, "device: cuda: "),
        (0, "auto", 1_999_999_999, ""),
        (1, "auto", 57_700_000_000, ""),
    ],
)
def test_a_large_model_comes_to_the_cpu_only_on_purpose(
    machine, cuda: int, wanted: str, model_bytes: int, words: str
) -> None:
    machine(cuda)
    with pytest.raises(UserError, match=words) if words else nullcontext():
        check_device(wanted, model_bytes)


def test_where_the_system_says_nothing_against_it_torch_gives_the_cause(
    machine, monkeypatch
) -> None:
    def init() -> None:
        raise RuntimeError("CUDA error 999:\n  unknown error")

    machine(0)
    monkeypatch.setattr(device, "read_facts", lambda: NvidiaFacts("13.0", "580.1", 1))
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(
        UserError, match="CUDA cannot be started: CUDA error 999: unknown error"
    ):
        check_device("auto", 57_700_000_000)


@pytest.fixture
def cuda_switches():
    """PyTorch's switches, put back after the test."""
    places = (
        (torch.backends.cuda.matmul, "allow_tf32"),
        (torch.backends.cudnn, "allow_tf32"),
        (torch.backends.cudnn, "benchmark"),
    )
    before = [getattr(*place) for place in places]
    for place in places:
        setattr(*place, False)
    yield lambda: [getattr(*place) for place in places]
    for place, value in zip(places, before, strict=True):
        setattr(*place, value)


@pytest.mark.parametrize(
    ("tf32", "benchmark", "expected"),
    [
        (False, False, [False] * 3),
        (True, False, [True, True, False]),
        (False, True, [False, False, True]),
    ],
)
def test_cuda_switches_are_set_as_asked(
    said: list[str], cuda_switches, tf32: bool, benchmark: bool, expected: list[bool]
) -> None:
    configure_cuda(torch.device("cuda:0"), tf32, benchmark)
    assert (cuda_switches(), said) == (expected, [])


def test_without_cuda_one_line_says_that_they_do_nothing(
    said: list[str], cuda_switches
) -> None:
    configure_cuda(torch.device("cpu"), True, True)
    assert said == [
        "train.cuda_allow_tf32 and train.cuda_cudnn_benchmark: no effect on cpu."
    ]
    configure_cuda(torch.device("cpu"), False, False)
    assert (cuda_switches(), len(said)) == ([False] * 3, 1)


def test_a_tensor_goes_to_a_device_in_a_number_type() -> None:
    tensor = torch.tensor([1.0, 2.5])
    cpu = torch.device("cpu")
    assert to_device(tensor, cpu) is tensor
    assert torch.equal(to_device(tensor, cpu, torch.bfloat16), tensor.bfloat16())


def test_only_from_the_cpu_to_cuda_it_takes_the_way_on_which_nobody_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy back that nobody waits for would hold anything."""
    asked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda self, *args, non_blocking=False: asked.append(non_blocking) or self,
    )
    to_device(torch.zeros(1), torch.device("cuda"))
    to_device(torch.zeros(1, device="meta"), torch.device("cpu"))
    to_device(torch.zeros(1, device="meta"), torch.device("cuda"))
    to_device(torch.zeros(1), torch.device("mps"))
    assert asked == [False, True, False, False, False]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        (
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
            True,
        ),
        (
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            True,
        ),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        (
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried",
            True,
        ),
        ("NCCL error: ncclUnhandledCudaError: Cuda failure 2 'out of memory'", True),
        ("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling cublasLtMatmul", False),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_memory_that_ran_out_is_recognised_whoever_says_it(
    message: str, expected: bool
) -> None:
    assert device.is_out_of_memory(RuntimeError(message)) is expected
    assert device.is_out_of_memory(
        torch.OutOfMemoryError("")
    ) and not device.is_out_of_memory(ValueError(message))


def test_where_no_more_memory_is_pinned_ordinary_memory_is_used_and_said_once(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """Swapped blocks, offloaded activations and copies of batches ask for it in this
    one place."""
    asked = []

    def limited(
        *shape: int, pin_memory: bool = False, **others: object
    ) -> torch.Tensor:
        asked.append(pin_memory)
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return torch.zeros(shape, **others)

    device._warn_unpinned.cache_clear()
    block = torch.nn.Linear(8, 8).requires_grad_(False)
    weight = block.weight.clone()
    monkeypatch.setattr(torch, "empty", limited)
    for _ in range(2):
        HostBlock(block, torch.device("cuda"))
    assert asked == [True, False] * 2 and torch.equal(block.weight, weight)
    assert len(said) == 1 and "blocks_to_swap" in said[0]

    def broken(pin_memory: bool) -> torch.Tensor:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="assert triggered"):
        device.pinned(broken)


def test_a_cuda_device_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert use_device(torch.device("cpu")) == torch.device("cpu") and current == []
    assert use_device(torch.device("cuda:1")) == torch.device("cuda:1") == current[0]
    assert (
        ProcessGroup().device(torch.device("cuda:2"))
        == torch.device("cuda:2")
        == current[1]
    )
