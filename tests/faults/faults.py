"""What a test breaks in a job's process before the job begins. Each function is called
by name, with plain values."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import stat
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

counters: list[Callable[[], int]] = []

SYNCHRONIZING = "called a synchronizing CUDA operation"
"""How PyTorch's warning begins."""

at_end: list[Callable[[], None]] = []
"""Called when the job is over."""

waits: list[Callable[[], dict[str, int]]] = []
"""What the host has waited for on the device so far, and how often."""


def largest_file(size: int) -> None:
    """No file may grow beyond `size` bytes: writing further fails as on a full disk.
    No compiled module is written then: Python 3.11 would leave it cut off beside its
    source, and each later import of it would end in EOFError."""
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def without_network() -> None:
    """Whoever opens a connection ends the process with 97."""

    def refuse(*_: Any) -> None:
        os._exit(97)

    socket.socket.connect = socket.socket.connect_ex = refuse
    socket.getaddrinfo = socket.create_connection = refuse


def wall_clock(ahead_s: float, after_calls: int) -> None:
    """From its n-th reading on, the clock that people read is ahead by so much
    (negative: behind)."""
    true_time, true_ns = time.time, time.time_ns
    calls = iter(range(10**9))
    time.time = lambda: true_time() + (ahead_s if next(calls) >= after_calls else 0)
    time.time_ns = lambda: (
        true_ns() + (int(ahead_s * 1e9) if next(calls) >= after_calls else 0)
    )


def unmeasured() -> None:
    """Jobs from scratch measure no memory."""
    from extensions.from_scratch import plan

    plan.MEASURE = "tests.extensions.from_scratch.unmeasured:step_of_nothing"


def environment(values: dict[str, str]) -> None:
    """The environment has these variables too."""
    os.environ.update(values)


def search_path(folder: str) -> None:
    """Modules are looked for in this folder too, as with PYTHONPATH."""
    sys.path.insert(1, folder)


def change_folder(path: str) -> None:
    """The job is started in another folder."""
    os.chdir(path)


def set_value(place: str, value: Any) -> None:
    """`module:attribute` has another value."""
    module, _, name = place.partition(":")
    setattr(import_module(module), name, value)


def no_locks() -> None:
    """The file system has no locks."""
    import fcntl

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = fcntl.fcntl = refuse


def no_flushing_of_folders() -> None:
    """The disk cannot flush a folder, as some network and FUSE mounts."""
    real = os.fsync

    def flush(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(handle)

    os.fsync = flush


def no_free_space_told() -> None:
    """The disk does not say how much of it is free."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    os.statvfs = refuse


def no_modes() -> None:
    """The disk has no modes of files."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    os.chmod = refuse


def cuda(library: str, report: str = "", total: int = 80 * 2**30) -> None:
    """There is a CUDA device, see tests/stand_in_cuda. total: bytes of its memory.

    report: a file for what the host `waited` for, how often, and the `most` bytes in
    use since training began.
    """
    from tests.stand_in_cuda import install

    device = install(Path(library), total)
    waits.append(device.waited_for)
    if report:
        write = Path(report).write_text
        at_end.append(
            lambda: write(
                json.dumps({"waited": device.waited_for(), "most": device.most()})
            )
        )


def real_cuda(report: str = "", total: int = 0) -> None:
    """On the CUDA device that is there, float32 is never rounded to TF32. total: bytes
    PyTorch may take; 0: all.

    report: as `cuda`'s. PyTorch does not tell one wait from another, nor those for an
    event.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if total:
        torch.cuda.set_per_process_memory_fraction(
            total / torch.cuda.get_device_properties(0).total_memory
        )
    if not report:
        return
    waited, show = [], warnings.showwarning

    def showwarning(message: Any, *rest: Any, **named: Any) -> None:
        if SYNCHRONIZING in str(message):
            waited.append(message)
        else:
            show(message, *rest, **named)

    warnings.showwarning = showwarning
    warnings.filterwarnings("always", message=SYNCHRONIZING)
    torch.cuda.set_sync_debug_mode("warn")
    waits.append(lambda: {"copy to the host": len(waited)})
    write = Path(report).write_text
    most = torch.cuda.max_memory_allocated
    at_end.append(lambda: write(json.dumps({"waited": waits[0](), "most": most()})))


def note_waits(place: str, calls: Sequence[int], report: str) -> None:
    """What the host has waited for until each of these calls of `module:attribute`, as
    a list in a file."""
    noted: list[dict[str, int]] = []

    def note() -> None:
        noted.append(waits[0]())
        Path(report).write_text(json.dumps(noted))

    for call in calls:
        _at_call(place, call, note)


def fetch_by_steps_only(every: int) -> None:
    """Numbers are fetched after so many steps, however slow these are; timesteps are
    known four micro-batches ahead."""
    from jobs.process import trainer
    from toolkit.train import flow_step, metrics_buffer

    metrics_buffer.METRICS_SYNC_SECONDS = float("inf")
    trainer.FETCH_EVERY, flow_step.LOOKAHEAD_BATCHES = every, 4


def slow(place: str, seconds: float) -> None:
    """Each call of `module:attribute[.attribute]` takes so much longer."""
    _around(place, lambda: time.sleep(seconds))


def slow_from(place: str, call: int, seconds: float) -> None:
    """From its n-th call on, `module:attribute` takes so much longer."""
    calls = iter(range(1, 10**9))
    _around(place, lambda: time.sleep(seconds if next(calls) >= call else 0))


def detach_first(attribute: str) -> None:
    """Nothing that is learned depends on the first trained layer with this attribute
    that computes anything."""
    from torch import is_grad_enabled
    from torch.nn.modules.module import register_module_forward_hook

    first: list[Any] = []

    def detach(module: Any, _: Any, output: Any) -> Any:
        is_trained = is_grad_enabled() and any(
            parameter.requires_grad for parameter in module.parameters()
        )
        if is_trained and hasattr(module, attribute):
            first[:] = first or [module]
            return output.detach() if module is first[0] else output
        return output

    register_module_forward_hook(detach)


def kill_self(place: str, call: int, number: int) -> None:
    """At the n-th call of `module:attribute`, the process sends itself a signal."""
    _at_call(place, call, lambda: os.kill(os.getpid(), number))


def fail(place: str, call: int, number: int) -> None:
    """The n-th call of `module:attribute` raises OSError with this error number."""

    def raise_it() -> None:
        raise OSError(number, os.strerror(number))

    _at_call(place, call, raise_it)


def run_out_of_memory(place: str, call: int) -> None:
    """At the n-th call of `module:attribute` the device has none left."""

    def raise_it() -> None:
        from torch import OutOfMemoryError

        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB.")

    _at_call(place, call, raise_it)


def touch_at(place: str, call: int, path: str) -> None:
    """At the n-th call of `module:attribute`, a file appears."""
    _at_call(place, call, lambda: Path(path).touch())


def hold(place: str, call: int, path: str) -> None:
    """The n-th call of `module:attribute` waits until there is a file."""

    def wait() -> None:
        while not Path(path).exists():
            time.sleep(0.01)

    _at_call(place, call, wait)


def leave_at(place: str, call: int) -> None:
    """At the n-th call of `module:attribute`, the process is gone: no handler, no
    `finally`, nothing is flushed."""
    _at_call(place, call, lambda: os._exit(99))


def leave_at_write(thread: str, call: int, half: bool) -> None:
    """The process is gone before the n-th write of a thread whose name begins so; half:
    within the n-th that can tear.

    Writes are whatever changes the disk: opening a file to write, flushing, renaming,
    removing, making a folder. `counters` tells how many there were.
    """
    from toolkit.networks import save as networks_files
    from toolkit.train import checkpoint_store

    count = 0
    inside = False

    def write(begin: Callable[[], None] | None = None) -> None:
        nonlocal count, inside
        if (
            inside
            or not threading.current_thread().name.startswith(thread)
            or (half and begin is None)
        ):
            return
        count += 1
        if count == call:
            inside = True
            if half:
                begin()
            os._exit(99)

    def on_event(event: str, arguments: tuple) -> None:
        if event == "open" and _writes(arguments[1], arguments[2]):
            write(partial(_write_half, *arguments[:2]) if arguments[1] else None)
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            write()

    def flush(handle: int) -> None:
        write()
        true_flush(handle)

    def save(tensors: dict, path: Path, **named: Any) -> None:
        def begin() -> None:
            true_save(tensors, path, **named)
            os.truncate(path, path.stat().st_size // 2)
            # as safetensors names it until it is whole
            os.rename(path, path.with_name(".tmpAbC123"))

        write(begin)
        true_save(tensors, path, **named)

    true_flush, true_save = os.fsync, checkpoint_store.save_file
    os.fsync = flush
    networks_files.save_file = checkpoint_store.save_file = save
    sys.addaudithook(on_event)
    counters.append(lambda: count)


def _writes(mode: str | None, flags: int) -> bool:
    return (
        bool(flags & (os.O_WRONLY | os.O_RDWR))
        if mode is None
        else mode[0] in "wax" or "+" in mode
    )


def _write_half(path: Any, mode: str) -> None:
    """What is left of a file when the process dies while it is written: of an appended
    one the end is torn."""
    kind = os.O_APPEND if mode[0] == "a" else os.O_TRUNC if mode[0] == "w" else 0
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | kind)
    os.write(handle, b'{"step": 1')


def _at_call(place: str, call: int, action: Callable[[], None]) -> None:
    calls = iter(range(1, 10**9))
    _around(place, lambda: action() if next(calls) == call else None)


def _around(place: str, before: Callable[[], None]) -> None:
    module, _, path = place.partition(":")
    *parents, name = path.split(".")
    owner = import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    true = getattr(owner, name)

    def replacement(*arguments: Any, **named: Any) -> Any:
        before()
        return true(*arguments, **named)

    setattr(owner, name, replacement)


def offline(cache: str) -> None:
    """As with HF_HUB_OFFLINE=1 and an empty cache."""
    import huggingface_hub.constants as constants

    constants.HF_HUB_OFFLINE, constants.HF_HUB_CACHE = True, cache
    os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=cache)


def main(arguments: Sequence[str]) -> int:
    """Runs a test's program, in the place of a job."""
    exec(arguments[0], {})
    return 0
