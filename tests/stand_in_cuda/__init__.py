"""A CUDA device where there is none: the program's own way on a GPU, with the CPU's
numbers.

`install(built())` gives this process one device of the name `cuda:0` (`device.cpp`),
and `torch.cuda` what the program asks of it. It shows what would fail on a GPU for
being in the wrong memory, and copies that nobody waits for; it says nothing of speed,
nor of kernels that CUDA has and a CPU has not. `python -m tests.stand_in_cuda job.yaml`
runs a job.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import itertools
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._functorch import config as functorch_config
from torch.utils import cpp_extension

SOURCE = Path(__file__).with_name("device.cpp")
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
TOTAL = 80 * 2**30
"""Bytes the device has, unless it is given less."""


def built() -> Path:
    """`device.cpp` compiled for this PyTorch, in the folder for temporary files; there
    it is found the next time."""
    made_of = f"{torch.__version__} {sysconfig.get_platform()} {SOURCE.read_text(encoding='utf-8')}"
    key = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"stand_in_cuda_{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            finished = Path(folder) / library.name
            subprocess.run(compilation(finished), check=True)
            finished.replace(library)
    return library


def compilation(library: Path) -> list[str]:
    """The command that compiles `device.cpp`."""
    headers = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    return [
        *(COMPILER, "-shared", "-fPIC", "-O1", "-std=c++20", "-w"),
        *("-DTORCH_EXTENSION_NAME=stand_in_cuda", "-DTORCH_API_INCLUDE_EXTENSION_H"),
        *(f"-isystem{folder}" for folder in headers),
        *(str(SOURCE), "-o", str(library)),
        *(f"-L{folder}" for folder in cpp_extension.library_paths()),
        *("-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"),
    ]


def install(library: Path, total: int = TOTAL) -> Any:
    """Loads what `built` made, and puts what Python asks of the device in the place of
    `torch.cuda`'s own functions.

    total: bytes of memory; to ask for more than is left raises torch.OutOfMemoryError.
    """
    Stream.device = device = loaded(library)
    device.set_limit(total)
    for name, stand_in in replacements(device, total).items():
        setattr(torch.cuda, name, stand_in)
    # CUDA's takes 16 bits only, in which a CPU is slow.
    torch.backends.cuda.can_use_flash_attention = lambda asked, _=False: (
        asked.query.is_cuda
    )
    # This takes a generator that only CUDA's own random functions have.
    functorch_config.graphsafe_rng_functionalization = False
    return device


def loaded(library: Path) -> Any:
    loader = importlib.machinery.ExtensionFileLoader("stand_in_cuda", str(library))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader("stand_in_cuda", loader)
    )
    loader.exec_module(module)
    return module


class Event:
    """How far a stream had got when it was recorded."""

    def __init__(self, device: Any, stream: int) -> None:
        self._device, self.stream, self.number = device, stream, device.begun(stream)

    def synchronize(self) -> None:
        self._device.finish(self.stream, self.number)


class Stream:
    """Work in order; one that is not the default stream only makes copies."""

    device: Any
    _numbers = itertools.count(1)

    def __init__(self, _: object = None, number: int | None = None) -> None:
        self.number = next(self._numbers) if number is None else number

    def record_event(self) -> Event:
        return Event(self.device, self.number)

    def wait_event(self, event: Event) -> None:
        if event.stream:
            self.device.finish(event.stream, event.number)
        else:
            self.device.see_default(self.number, event.number)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def synchronize(self) -> None:
        self.record_event().synchronize()


def replacements(device: Any, total: int) -> dict[str, Any]:
    """What `torch.cuda` is asked for, by name."""

    @contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        before = device.enter(stream.number)
        try:
            yield
        finally:
            device.enter(before)

    return {
        "_lazy_init": lambda: None,
        "current_device": lambda: 0,
        "current_stream": lambda _=None: Stream(number=device.current()),
        "device_count": lambda: 1,
        "empty_cache": lambda: None,
        "get_device_capability": lambda _=None: (9, 0),
        "default_generators": (torch.default_generator,),
        "get_device_name": lambda _=None: "stand-in",
        "get_device_properties": lambda _=None: SimpleNamespace(
            total_memory=total,
            name="stand-in",
            major=9,
            minor=0,
            multi_processor_count=132,
        ),
        "get_rng_state": lambda _=None: torch.get_rng_state(),
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "max_memory_allocated": lambda _=None: device.most(),
        "mem_get_info": lambda _=None: (total - device.in_use(), total),
        "memory_allocated": lambda _=None: device.in_use(),
        "memory_reserved": lambda _=None: device.in_use(),
        "reset_peak_memory_stats": lambda _=None: device.forget_most(),
        "set_device": lambda _: None,
        "set_rng_state": lambda state, _=None: torch.set_rng_state(state),
        "stream": entered,
        "Stream": Stream,
        "synchronize": lambda _=None: device.finish_all(),
    }
