"""What a test breaks in a job's process before the job begins. Each function is called by name, with plain values."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def largest_file(size: int) -> None:
    """No file may grow beyond `size` bytes: writing further fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def user(number: int) -> None:
    """No more rights than a user has: root may write into read-only folders."""
    os.setgroups([])
    os.setgid(number)
    os.setuid(number)


def without_network() -> None:
    """Whoever opens a connection ends the process with 97."""

    def refuse(*_: Any) -> None:
        os._exit(97)

    socket.socket.connect = socket.socket.connect_ex = refuse
    socket.getaddrinfo = socket.create_connection = refuse


def wall_clock(ahead_s: float, after_calls: int) -> None:
    """From its n-th reading on, the clock that people read is ahead by so much (negative: behind)."""
    true_time, true_ns = time.time, time.time_ns
    calls = iter(range(10**9))
    time.time = lambda: true_time() + (ahead_s if next(calls) >= after_calls else 0)
    time.time_ns = lambda: true_ns() + (int(ahead_s * 1e9) if next(calls) >= after_calls else 0)


def slow(place: str, seconds: float) -> None:
    """Each call of `module:attribute[.attribute]` takes so much longer."""
    _around(place, lambda: time.sleep(seconds))


def kill_self(place: str, call: int, number: int) -> None:
    """At the n-th call of `module:attribute`, the process sends itself a signal."""
    _at_call(place, call, lambda: os.kill(os.getpid(), number))


def fail(place: str, call: int, number: int) -> None:
    """The n-th call of `module:attribute` raises OSError with this error number."""

    def raise_it() -> None:
        raise OSError(number, os.strerror(number))

    _at_call(place, call, raise_it)


def touch_at(place: str, call: int, path: str) -> None:
    """At the n-th call of `module:attribute`, a file appears."""
    _at_call(place, call, lambda: Path(path).touch())


def leave_at(place: str, call: int) -> None:
    """At the n-th call of `module:attribute`, the process is gone: no handler, no `finally`, nothing is flushed."""
    _at_call(place, call, lambda: os._exit(99))


def _at_call(place: str, call: int, action: Callable[[], None]) -> None:
    calls = iter(range(1, 10**9))
    _around(place, lambda: action() if next(calls) == call else None)


def _around(place: str, before: Callable[[], None]) -> None:
    from importlib import import_module

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
