"""Other processes and threads: commands, what is waited for with a limit, Ctrl-C, and
several real processes that meet as `torchrun` lets them, forked from the one that runs
the tests."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from toolkit.errors import Interrupted
from toolkit.system import distributed, signals
from toolkit.system.distributed_env import read_distributed_env

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Fails where the block takes longer."""

    def ring(*_: object) -> None:
        raise AssertionError(f"still at work after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def interrupting() -> Iterator[Callable[..., None]]:
    """Gives a function that holds a thread and presses Ctrl-C, once, which has to end
    the block before the thread goes on."""
    ended, presses = threading.Event(), [signal.SIGINT]

    def hold(*_: object) -> None:
        time.sleep(0.1)  # by then the main thread waits
        while presses:
            signal.pthread_kill(threading.main_thread().ident, presses.pop())
        ended.wait(30)

    before = signal.signal(signal.SIGINT, signals._on_signal)
    try:
        with alarm(20), pytest.raises(Interrupted):
            yield hold
    finally:
        ended.set()
        signal.signal(signal.SIGINT, before)
        until(lambda: not any("batches" in one.name for one in threading.enumerate()))


def killed(work: Callable[[], object]) -> bool:
    """Whether a forked process ends within the work, by `os._exit(9)`."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def until(
    happened: Callable[[], T],
    seconds: float = 30,
    process: subprocess.Popen | None = None,
) -> T:
    """What a call gives as soon as it is true: it is about another thread, or about a
    process, which may not end before."""
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert process is None or process.poll() is None
        assert time.monotonic() < deadline, happened
        time.sleep(0.01)
    return found


def output_of(
    *command: object,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    seconds: float = 300,
    said: str | None = None,
) -> str:
    """What a command prints; it ends well within this time. said: all that it may write
    to standard error; None: anything."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in (None, done.stderr), done.stderr
    return done.stdout


def python(code: str, *arguments: object, **how: Any) -> str:
    """What a program prints in a new interpreter; how: as of `output_of`."""
    return output_of(sys.executable, "-c", code, *arguments, **how)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What a launcher sets for one of `size` processes on this machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }


@contextmanager
def several(monkeypatch: pytest.MonkeyPatch, processes: int) -> Iterator[None]:
    """Inside, this process is the first of so many."""
    with monkeypatch.context() as patched:
        for name, value in environment(0, processes, 29500).items():
            patched.setenv(name, value)
        yield


def in_processes(
    size: int,
    work: Callable[..., Any],
    *arguments: Any,
    minutes: float = 1,
    connected: bool = True,
) -> list[Any]:
    """What `work(process_group, *arguments)` returns in each of `size` processes, or
    the error it raises; by rank.

    A process that dies without a word gives None. minutes: how long one exchange may
    take. connected: False leaves them before they can exchange anything, as while a job
    is read.
    """
    fork, port = multiprocessing.get_context("fork"), free_port()
    pipes = [fork.Pipe(duplex=False) for _ in range(size)]
    started = [
        fork.Process(
            target=_work,
            args=(
                rank,
                size,
                port,
                minutes,
                connected,
                pipes[rank][1],
                work,
                arguments,
            ),
        )
        for rank in range(size)
    ]
    for process in started:
        process.start()
    for _, sender in pipes:
        sender.close()
    try:
        return [_received(receiver) for receiver, _ in pipes]
    finally:
        for process in started:
            process.join(timeout=10)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                process.join()


def _received(receiver: Any) -> Any:
    try:
        assert receiver.poll(60), "a process hangs"
        return receiver.recv()
    except EOFError:
        return None


def _work(
    rank: int,
    size: int,
    port: int,
    minutes: float,
    connected: bool,
    sender: Any,
    work: Callable[..., Any],
    arguments: tuple,
) -> None:
    os.environ.update(environment(rank, size, port))
    try:
        process_group = distributed.rendezvous_processes(read_distributed_env())
        if connected:
            process_group.init_process_group(minutes)
            # rank 0, which may end soon, has the store the others need
            process_group.all_gather_object("connected")
        result = work(process_group, *arguments)
    except Exception as error:  # noqa: BLE001 - the test looks at it
        result = error
    sender.send(result)
    sender.close()
    os._exit(0)
