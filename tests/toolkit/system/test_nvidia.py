"""Why no CUDA device can be used, from facts that are handed in."""

import ctypes
import sys
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import ROOT
from toolkit.system import nvidia
from toolkit.system.nvidia import (
    ACCIDENTAL_CPU_LIMIT,
    TO_TRY,
    Gpu,
    NvidiaFacts,
    ask_nvml,
    cpu_instead_here,
    gpu_name,
    half_precision,
    least_memory,
    likely_cause,
    read_facts,
    why_no_device_here,
)

WELL = NvidiaFacts(torch_cuda="13.0", driver="580.65.06", devices=1)
NOTHING = replace(WELL, driver=None, devices=0)
LARGE = ACCIDENTAL_CPU_LIMIT + 1


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            replace(WELL, torch_cuda=None),
            ["PyTorch is a build for the CPU", "requirements.txt"],
        ),
        (
            replace(WELL, driver="570.10"),
            ["driver 570.10 is too old", "CUDA 13.0", "driver 580 or newer"],
        ),
        (
            replace(WELL, driver="520.1", torch_cuda="12.8"),
            ["driver 520.1 is too old", "driver 525 or newer"],
        ),
        (
            replace(WELL, driver="580.1", torch_cuda="14.0", devices=0),
            ["580.1 is loaded and offers no GPU"],
        ),
        (replace(WELL, visible=""), ["CUDA_VISIBLE_DEVICES='' hides every GPU"]),
        (replace(WELL, visible="-1"), ["CUDA_VISIBLE_DEVICES='-1' hides every GPU"]),
        (
            replace(WELL, devices=0, in_container=True),
            ["container was started without a GPU", "docker run --gpus all"],
        ),
        (replace(NOTHING, in_container=True), ["container was started without a GPU"]),
        (
            replace(NOTHING, on_bus=True),
            ["an NVIDIA GPU is there and no driver is loaded", "driver 580"],
        ),
        (NOTHING, ["this machine has no NVIDIA GPU"]),
    ],
)
def test_the_likely_cause_is_one_sentence_with_a_remedy(
    facts: NvidiaFacts, words: list[str]
) -> None:
    cause = likely_cause(facts)
    assert all(word in cause for word in words), cause
    assert cause.endswith(".") and "\n" not in cause and ":" in cause


@pytest.mark.parametrize(
    "facts",
    [
        WELL,
        replace(WELL, visible="1"),
        replace(WELL, driver="525.1", torch_cuda="12.8"),
    ],
)
def test_nothing_is_said_against_a_machine_that_is_well(facts: NvidiaFacts) -> None:
    assert likely_cause(facts) == ""


@pytest.mark.skipif(sys.platform == "darwin", reason="there torch has to be asked")
@pytest.mark.parametrize(
    ("device", "model_bytes", "facts", "refused"),
    [
        ("auto", LARGE, NOTHING, True),
        ("cuda:0", LARGE, NOTHING, True),
        ("mps", LARGE, WELL, True),
        ("cuda:1", LARGE, WELL, True),
        ("cuda:1", LARGE, replace(WELL, devices=2), False),
        ("cuda:1", LARGE, replace(WELL, devices=2, visible="1"), True),
        ("cuda", LARGE, WELL, False),
        ("auto", LARGE, WELL, False),
        ("auto", ACCIDENTAL_CPU_LIMIT, NOTHING, False),
        ("cuda:0", ACCIDENTAL_CPU_LIMIT, NOTHING, False),
        ("cpu", LARGE, NOTHING, False),
    ],
)
def test_only_a_large_model_without_a_device_that_is_not_meant_for_the_cpu_is_refused(
    device: str, model_bytes: int, facts: NvidiaFacts, refused: bool
) -> None:
    message = why_no_device_here(device, model_bytes, facts)
    assert bool(message) is refused
    assert not refused or (
        f"device: {device}: " in message
        and "2 GB" in message
        and "'device: cpu'" in message
    )


@pytest.mark.skipif(sys.platform == "darwin", reason="there torch has to be asked")
@pytest.mark.parametrize(
    ("model_bytes", "facts", "is_offered"),
    [
        (LARGE, NOTHING, True),
        (LARGE, replace(NOTHING, torch_cuda=None), True),
        (LARGE, replace(NOTHING, on_bus=True), False),
        (LARGE, replace(WELL, torch_cuda=None), False),
        (0, NOTHING, False),
    ],
)
def test_a_machine_without_a_gpu_is_offered_the_small_model(
    model_bytes: int, facts: NvidiaFacts, is_offered: bool
) -> None:
    """It is there under this name, with what makes it a model."""
    message = why_no_device_here("cuda", model_bytes, facts)
    assert message.endswith(TO_TRY) is is_offered and "Likely cause: " in message
    folder = TO_TRY.removesuffix(".").rpartition("model.name_or_path: ")[2]
    assert (ROOT / folder / "model_index.json").is_file()


@pytest.mark.skipif(sys.platform == "darwin", reason="there torch has to be asked")
@pytest.mark.parametrize(
    ("device", "facts", "is_refused", "is_cpu"),
    [
        ("cuda", NOTHING, True, False),
        ("cuda:1", WELL, True, False),
        ("mps", WELL, True, False),
        ("cuda:0", NOTHING, False, True),
        ("cuda:0", WELL, False, False),
        ("auto", NOTHING, False, False),
        ("cpu", NOTHING, False, False),
    ],
)
def test_a_dry_run_says_what_becomes_of_a_device_that_is_not_there(
    device: str, facts: NvidiaFacts, is_refused: bool, is_cpu: bool
) -> None:
    """Of a small model: a chosen device is refused; cuda:0 is the CPU, which the plan
    says."""
    assert bool(why_no_device_here(device, 0, facts)) is is_refused
    assert bool(line := cpu_instead_here(device, facts)) is is_cpu
    assert not is_cpu or (f"device: {device}: " in line and "the CPU is used" in line)


def test_the_facts_of_this_machine_agree_with_torch() -> None:
    import torch

    facts = read_facts()
    assert facts.torch_cuda == torch.version.cuda
    assert not torch.cuda.is_available() or likely_cause(facts) == ""


@pytest.mark.parametrize(
    ("facts", "capability", "expected"),
    [
        (WELL, 9, "bfloat16"),
        (WELL, 7, "float16"),
        (WELL, 0, "bfloat16"),
        (NOTHING, 9, "float32"),
        (replace(WELL, torch_cuda=None), 9, "float32"),
    ],
)
def test_16_bits_are_those_that_the_gpu_has(
    facts: NvidiaFacts, capability: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        nvidia, "ask_nvml", lambda: ("580.1", [Gpu("", 9, 0), Gpu("", capability, 0)])
    )
    name, reason = half_precision(facts)
    assert name == expected and reason.startswith(f"{expected} is used: ")


def test_what_the_driver_says_agrees_with_torch() -> None:
    import torch

    devices = range(torch.cuda.device_count())
    assert [gpu.capability for gpu in ask_nvml()[1]] == [
        torch.cuda.get_device_capability(i)[0] for i in devices
    ]


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("auto", None, "GPU 0"),
        ("cuda", "", ""),
        ("cuda:1", None, "GPU 1"),
        ("cuda:1", "3,2", "GPU 2"),
        ("cuda:2", "3,2", ""),
        ("cuda:0", "GPU-8932f937", ""),
        ("cpu", None, ""),
        ("mps", None, ""),
    ],
)
def test_the_name_is_that_of_the_gpu_that_the_job_means(
    monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None, expected: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(ctypes, "CDLL", Nvml)
    assert gpu_name(device) == expected


class Nvml:
    """A driver with four GPUs that says what it is asked for."""

    def __init__(self, library: str) -> None:
        self.nvmlInit_v2 = self.nvmlShutdown = lambda: 0

    def nvmlSystemGetDriverVersion(self, version: Any, size: object) -> int:
        version.value = b"580.1"
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 4
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: Any) -> int:
        handle._obj.value = 100 + index.value
        return 0

    def nvmlDeviceGetName(
        self, handle: ctypes.c_void_p, name: Any, size: object
    ) -> int:
        name.value = f"GPU {(handle.value or 0) - 100}".encode()
        return 0

    def nvmlDeviceGetCudaComputeCapability(
        self, handle: ctypes.c_void_p, major: Any, minor: Any
    ) -> int:
        major._obj.value = (handle.value or 0) - 93
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, memory: Any) -> int:
        memory[0] = (handle.value or 0) * 10**8 if handle.value != 100 else 0
        memory[2] = memory[0] // 4
        return 0 if memory[0] else 3

    def nvmlDeviceGetUtilizationRates(self, handle: ctypes.c_void_p, load: Any) -> int:
        load[0] = 72
        return 0 if handle.value == 101 else 3


def test_everything_the_driver_says_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", Nvml)
    driver, gpus = ask_nvml()
    assert driver == "580.1" and gpus[1] == Gpu(
        "GPU 1", 8, 10_100_000_000, 2_525_000_000, 72
    )
    assert gpus[2].load is None  # a virtual GPU, say
    assert read_facts().devices == 4 and least_memory() == 10_100_000_000
    assert half_precision(replace(WELL, devices=4))[0] == "float16"
