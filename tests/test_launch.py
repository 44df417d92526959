"""How `launch.py` ends: real launchers, with workers that are a few lines of Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes import free_port

ROOT = Path(__file__).resolve().parents[1]
SOON = "timeout=2,read_timeout=2,join_timeout=2"


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Starts launch.py with these flags and a worker of this text."""

    def start(worker: str, *flags: str) -> subprocess.Popen:
        (file := tmp_path / "worker.py").write_text(worker)
        command = [sys.executable, str(ROOT / "launch.py"), *flags, str(file)]
        named: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **named)

    return start


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("no-such-host.invalid", "no connection to the rendezvous at {place}: The client socket has timed out"),
        ("localhost", "fewer than 2 machines met at {place} in time"),
    ],
)
def test_machines_that_do_not_meet_are_one_line(launch: Callable, host: str, says: str) -> None:
    """An address that is nobody's, and a machine that never comes."""
    place = f"{host}:{free_port()}"
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={place}", f"--rdzv-conf={SOON}", "--rdzv-id=x"]
    started = launch("", "--nnodes=2", *meeting)
    _, errors = started.communicate(timeout=60)
    [line] = errors.splitlines()
    assert line.startswith(f"launch.py: {says.format(place=place)}")
    assert started.returncode == 1


ONE_DIES = "import os, sys, time\nif os.environ['RANK'] == '1':\n    {}\ntime.sleep(60)"


@pytest.mark.parametrize(
    ("worker", "code", "says"),
    [
        ("import os; print(os.environ.get('TORCH_CPP_LOG_LEVEL'))", 0, []),
        (ONE_DIES.format("sys.exit(2)"), 2, []),
        (ONE_DIES.format("os.kill(os.getpid(), 9)"), 137, ["launch.py: process 1 was killed by SIGKILL"]),
    ],
)
def test_the_exit_code_is_that_of_the_processes(launch: Callable, worker: str, code: int, says: list[str]) -> None:
    started = launch(worker, "--standalone", "--nproc-per-node=2")
    output, errors = started.communicate(timeout=60)
    assert (started.returncode, errors.splitlines()) == (code, says)
    assert not output.replace(str(os.environ.get("TORCH_CPP_LOG_LEVEL")), "").strip()  # of two, within one another


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_stop_waits_for_the_processes_and_has_the_code_of_a_stop(launch: Callable, number: int, code: int) -> None:
    worker = (
        "import signal, sys, time\n"
        "def save(*_):\n    time.sleep(0.5)\n    print('saved', flush=True)\n    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save)\nsignal.signal(signal.SIGINT, save)\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    started = launch(worker, "--standalone")
    assert started.stdout.readline() == "ready\n"
    started.send_signal(number)
    output, errors = started.communicate(timeout=60)
    assert (started.returncode, output, "Traceback" in errors) == (code, "saved\n", False)


def test_a_process_that_does_not_stop_is_killed_after_the_time_of_the_flag(launch: Callable) -> None:
    worker = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    started = launch(worker, "--standalone", "--shutdown-timeout=1")
    assert started.stdout.readline() == "ready\n"
    started.send_signal(signal.SIGTERM)
    _, errors = started.communicate(timeout=25)  # torchrun's own limit is 30 s
    assert started.returncode == 75 and "forcefully exiting via" in errors
