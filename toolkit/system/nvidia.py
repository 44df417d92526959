"""Facts about NVIDIA GPUs and the installed PyTorch, as the system gives them, and the
reason why no CUDA device can be used.

Imports no torch, so that a dry run can report the reason too. It opens no device and
starts no CUDA: it asks the driver's library (NVML) and reads files of the system.
`device` chooses the device with torch. Called by the plan, by `device`, `readings` and
`toolkit.memory.compiling`, and by the tools that show the machine.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import NamedTuple

LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
"""Major version of CUDA -> major version of the first Linux driver that runs programs
built with it. Source: NVIDIA, CUDA Compatibility, "Minor Version Compatibility"."""

ACCIDENTAL_CPU_LIMIT = 2_000_000_000
"""Bytes of a model above which it is computed on the CPU only where the job says
`device: cpu`."""

ANY_DEVICE = ("auto", "cuda:0")
"""Values of `device` with which a small model is trained on the CPU where there is no
GPU. Every job of ai-toolkit has `cuda:0`; each other value chooses a device."""

_TINY = Path("config", "examples", "tiny_mascots")

TO_TRY = (
    "To try the program on this machine, give the small model that comes with it, which draws flat mascots only: "
    f"model.name_or_path: {(_TINY if _TINY.is_dir() else Path(__file__).resolve().parents[2] / _TINY).as_posix()}."
)
"""A hint in the plan for a machine without a GPU, with a path that is one from here."""

NO_MPS = "mps is a device of Apple's machines: leave 'device' out, or write 'auto'."


class Gpu(NamedTuple):
    """The driver's values of one GPU.

    >>> gpu = Gpu("NVIDIA H100 80GB HBM3", capability=9, memory=85_520_809_984)
    >>> gpu.load is None
    True
    """

    name: str
    """Empty: not known."""

    capability: int
    """Major compute capability; 0: not known."""

    memory: int
    """Bytes; 0: not known."""

    used: int = 0
    """Bytes of `memory` that all processes use."""

    load: int | None = None
    """Percent of the last sampling period in which it computed; None: not known."""


@dataclass(frozen=True)
class NvidiaFacts:
    """Facts about the machine, and about the installed PyTorch.

    >>> facts = NvidiaFacts("13.0", driver="580.65.06", devices=4, visible="0,1")
    >>> facts.usable, likely_cause(facts)
    (2, '')
    """

    torch_cuda: str | None
    """The CUDA version that PyTorch is built with, as in "13.0"; None: it is a build
    for the CPU."""

    driver: str | None
    """Version of the loaded driver, as in "580.65.06"."""

    devices: int
    """GPUs that this process can open."""

    on_bus: bool = False
    """Whether an NVIDIA GPU is on the PCI bus."""

    in_container: bool = False
    visible: str | None = None
    """CUDA_VISIBLE_DEVICES, where it is set."""

    @property
    def usable(self) -> int:
        """Number of devices that CUDA_VISIBLE_DEVICES leaves. PyTorch counts them from
        0."""
        if self.visible is None:
            return self.devices
        return min(self.devices, len(self.visible.split(",")))


def read_facts() -> NvidiaFacts:
    """The facts of this machine. Opens no device and starts no CUDA."""
    driver, gpus = ask_nvml()
    containers = ("/.dockerenv", "/run/.containerenv")
    return NvidiaFacts(
        torch_cuda=_cuda_of_torch(),
        driver=driver or _kernel_driver(),
        devices=len(gpus) or len(list(Path("/dev").glob("nvidia[0-9]*"))),
        on_bus=_is_on_bus(),
        in_container=any(map(os.path.exists, containers))
        or "KUBERNETES_SERVICE_HOST" in os.environ,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def has_no_gpu() -> bool:
    """Whether PyTorch certainly cannot use a CUDA device on this machine. False where
    that cannot be known without torch."""
    return sys.platform == "darwin" or bool(likely_cause(read_facts()))


def ask_nvml() -> tuple[str | None, list[Gpu]]:
    """The driver and its GPUs, from the library that nvidia-smi uses; (None, []) where
    the library is missing."""
    version = ctypes.create_string_buffer(96)
    gpus = list[Gpu]()
    with suppress(OSError, AttributeError):
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() == 0:
            nvml.nvmlSystemGetDriverVersion(version, ctypes.c_uint(96))
            count = ctypes.c_uint(0)
            nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
            for index in range(count.value):
                # A value that a call does not give stays empty or 0.
                device = ctypes.c_void_p()
                name = ctypes.create_string_buffer(96)
                major = ctypes.c_int(0)
                minor = ctypes.c_int(0)
                total_free_used = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t
                nvml.nvmlDeviceGetHandleByIndex_v2(
                    ctypes.c_uint(index), ctypes.byref(device)
                )
                nvml.nvmlDeviceGetName(device, name, ctypes.c_uint(96))
                nvml.nvmlDeviceGetCudaComputeCapability(
                    device, ctypes.byref(major), ctypes.byref(minor)
                )
                nvml.nvmlDeviceGetMemoryInfo(device, total_free_used)
                total, _, used = total_free_used
                load = (ctypes.c_uint * 2)()  # nvmlUtilization_t: gpu, memory
                is_told = nvml.nvmlDeviceGetUtilizationRates(device, load) == 0
                known = name.value.decode("ascii", "replace"), major.value, total, used
                gpus.append(Gpu(*known, load[0] if is_told else None))
            nvml.nvmlShutdown()
    return version.value.decode("ascii", "replace") or None, gpus


def likely_cause(facts: NvidiaFacts) -> str:
    """Why CUDA cannot be used, with the remedy, in one sentence; empty where the facts
    show no reason.

    >>> likely_cause(NvidiaFacts("13.0", driver="550.54", devices=1))
    'the NVIDIA driver 550.54 is too old for this PyTorch, ...'
    """
    if facts.torch_cuda is None:
        return "the installed PyTorch is a build for the CPU: install requirements.txt into a new environment."
    least = LEAST_DRIVER.get(
        int(facts.torch_cuda.partition(".")[0]), max(LEAST_DRIVER.values())
    )
    if facts.visible is not None and facts.visible.strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={facts.visible!r} hides every GPU: unset it."
    major = re.match(r"\d+", facts.driver or "")
    if major and int(major[0]) < least:
        return (
            f"the NVIDIA driver {facts.driver} is too old for this PyTorch, which is built with CUDA "
            f"{facts.torch_cuda}: install driver {least} or newer."
        )
    if facts.devices and facts.driver:
        return ""
    if facts.in_container:
        return "this container was started without a GPU: start it with `docker run --gpus all`."
    if facts.driver:
        return f"the NVIDIA driver {facts.driver} is loaded and offers no GPU: see what `nvidia-smi` says."
    if facts.on_bus:
        return f"an NVIDIA GPU is there and no driver is loaded: install driver {least} or newer."
    return "this machine has no NVIDIA GPU: run the job on one that has."


def why_no_device(device: str, model_bytes: int, cause: str) -> str:
    """Why a job does not start whose device cannot be used; empty where a small model
    is trained on the CPU instead.

    device: as the job gives it. model_bytes: of all parts of the model; 0: not known.
    cause: a sentence.
    """
    missing = f"device: {device}: no such device can be used here"
    if model_bytes > ACCIDENTAL_CPU_LIMIT:
        size = f"a model of {model_bytes / 1e9:.0f} GB"
        return (
            f"{missing}, and {size} is trained on the CPU only where the job says "
            f"'device: cpu'. Likely cause: {cause}"
        )
    if device in ANY_DEVICE:
        return ""
    return f"{missing}. Write 'device: auto' for the best device that can, or 'cpu'. Likely cause: {cause}"


def why_no_device_here(
    device: str, model_bytes: int, facts: NvidiaFacts | None = None
) -> str:
    """`why_no_device` with a cause that can be found without torch; empty where the job
    may start on this machine. For a large model on a machine without a GPU the message
    ends with TO_TRY."""
    cause = _cause_here(device, facts)
    message = why_no_device(device, model_bytes, cause) if cause else ""
    if not message or model_bytes <= ACCIDENTAL_CPU_LIMIT:
        return message
    facts = facts or read_facts()
    if facts.devices or facts.on_bus:
        return message
    return f"{message} {TO_TRY}"


def cpu_instead_here(device: str, facts: NvidiaFacts | None = None) -> str:
    """A line for the plan where the CPU is used although the job names a device; empty
    otherwise, and where that cannot be known without torch."""
    cause = _cause_here(device, facts)
    if not cause or device == "auto" or why_no_device(device, 0, cause):
        return ""
    return f"device: {device}: no such device can be used here: the CPU is used. Likely cause: {cause}"


def _cause_here(device: str, facts: NvidiaFacts | None) -> str:
    """Why the device cannot be used; empty where no reason can be found without
    torch."""
    if device == "cpu" or sys.platform == "darwin":
        return ""
    facts = facts or read_facts()
    if device == "mps":
        return NO_MPS
    return likely_cause(facts) or last_device(device, facts.usable)


def last_device(device: str, count: int) -> str:
    """Why `cuda:N` is not one of `count` devices; empty where it is one, or where
    `device` has no number.

    >>> last_device("cuda:2", count=2)
    'the last CUDA device here is cuda:1.'
    """
    index = device.partition("cuda:")[2]
    if index and int(index) >= count:
        return f"the last CUDA device here is cuda:{count - 1}."
    return ""


NO_C_COMPILER = "a C compiler (gcc, clang, or the one that CC names)"


def has_c_compiler() -> bool:
    """Whether Triton finds a C compiler, with which it builds the launcher of each
    kernel (triton/runtime/build.py)."""
    return bool(os.environ.get("CC") or which("gcc") or which("clang"))


def compiling_note() -> str | None:
    """A line about the effect of `train.compile: auto` on a CUDA device of this machine;
    None where PyTorch is a build for the CPU."""
    if _cuda_of_torch() is None:
        return None
    lack = "" if has_c_compiler() else NO_C_COMPILER
    if find_spec("triton") is None:
        lack = "Triton"
    if lack:
        return f"train.compile auto: the blocks are not compiled, for which {lack} is missing; each step takes longer"
    return "train.compile auto: the blocks are compiled at their first use, which takes a minute or more"


def half_precision(facts: NvidiaFacts | None = None) -> tuple[str, str]:
    """The number type of 16 bits that suits this machine's GPUs, else float32; and the
    reason in one sentence."""
    facts = facts or read_facts()
    if facts.torch_cuda is None or not facts.usable:
        return (
            "float32",
            "float32 is used: without an NVIDIA GPU 16 bits are not faster, and are less exact.",
        )
    capability = min(filter(None, (gpu.capability for gpu in ask_nvml()[1])), default=8)
    if capability < 8:
        return (
            "float16",
            f"float16 is used: GPUs of compute capability {capability} have no bfloat16.",
        )
    return (
        "bfloat16",
        "bfloat16 is used: as fast as float16 on this GPU, and its range needs no loss scaling.",
    )


def gpu_of_job(device: str) -> Gpu:
    """The driver's values of the GPU that `device` of a job means; empty ones where
    there is none, or where it is not known which."""
    if device not in ("cpu", "mps"):
        gpus = ask_nvml()[1]
        number = _number_of(device)
        if number is not None and number < len(gpus):
            return gpus[number]
    return Gpu("", 0, 0)


def gpu_name(device: str) -> str:
    """The driver's name of the GPU that `device` of a job means; empty where there is
    none, or where its name is not known."""
    return gpu_of_job(device).name


def _number_of(device: str) -> int | None:
    """The driver's number of the GPU that `device` of a job means; None where
    CUDA_VISIBLE_DEVICES does not name it by number."""
    index = int(device.partition("cuda:")[2] or 0)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return index
    number = (visible.split(",")[index : index + 1] or [""])[0].strip()
    return int(number) if number.isdecimal() else None


THROTTLED = {
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x20: "temperature",
    0x40: "temperature",
    0x80: "power brake",
}
"""Bit of nvmlDeviceGetCurrentClocksThrottleReasons -> the reason for a lower clock than
the load would need. Source: nvml.h."""


def gpu_clock(device: str) -> tuple[int, tuple[str, ...]]:
    """Clock of the multiprocessors of a CUDA device in MHz, and the reasons that lower
    it (`THROTTLED`); (0, ()) where it is not known."""
    number = _number_of(device)
    nvml = _open_nvml()
    if number is None or nvml is None:
        return 0, ()
    handle = ctypes.c_void_p()
    clock = ctypes.c_uint(0)
    reasons = ctypes.c_ulonglong(0)
    if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(number), ctypes.byref(handle)):
        return 0, ()
    # NVML_CLOCK_SM
    nvml.nvmlDeviceGetClockInfo(handle, ctypes.c_int(1), ctypes.byref(clock))
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle, ctypes.byref(reasons))
    return clock.value, tuple(
        dict.fromkeys(name for bit, name in THROTTLED.items() if reasons.value & bit)
    )


@cache
def _open_nvml() -> ctypes.CDLL | None:
    """The driver's library, which stays open until the program ends; None where it is
    missing."""
    with suppress(OSError, AttributeError):
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() == 0:
            return nvml
    return None


def least_memory() -> int:
    """Bytes of memory of the smallest GPU; 0 where no GPU exists or none is known."""
    return min(filter(None, (gpu.memory for gpu in ask_nvml()[1])), default=0)


def _kernel_driver() -> str | None:
    """The version of the driver's kernel module. It is known within a container without
    a GPU too."""
    with suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text(
            encoding="utf-8", errors="replace"
        )
        match = re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", text)
        return match[0] if match else None
    return None


def _is_on_bus() -> bool:
    for device in Path("/sys/bus/pci/devices").glob("*"):
        with suppress(OSError):
            vendor, kind = (
                (device / name).read_text(encoding="ascii").strip()
                for name in ("vendor", "class")
            )
            if vendor == "0x10de" and kind.startswith("0x03"):
                return True
    return False


def _cuda_of_torch() -> str | None:
    """`torch.version.cuda`, read from its file."""
    try:
        text = Path(
            str(distribution("torch").locate_file("torch/version.py"))
        ).read_text(encoding="utf-8")
    except (PackageNotFoundError, OSError):
        return None
    match = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None
