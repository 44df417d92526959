"""How `launch.py` ends: real launchers, with workers that are a few lines of Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.nursery import Child, Nursery
from tests.processes import free_port

ROOT = Path(__file__).resolve().parents[1]
SOON = "timeout=1,read_timeout=1,join_timeout=1"


@pytest.fixture
def launch(nursery: Nursery, tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Starts launch.py with these flags and a worker of this text, forked from a
    process that has imported PyTorch."""
    started: list[Child] = []

    def start(worker: str, *flags: str) -> Child:
        (file := tmp_path / "worker.py").write_text(worker)
        started.append(nursery.fork([*flags, file], tmp_path, "launch", main="launch"))
        return started[-1]

    yield start
    for child in started:
        child.end()


def launched(
    folder: Path, worker: str, *flags: str
) -> subprocess.CompletedProcess[str]:
    """The same in a separate interpreter, which reads its environment before importing
    PyTorch."""
    (file := folder / "worker.py").write_text(worker)
    command = [sys.executable, str(ROOT / "launch.py"), *flags, str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "says"),
    [
        (
            "no-such-host.invalid",
            "no connection to the rendezvous at {place}: The client socket has timed out",
        ),
        ("localhost", "fewer than 2 machines met at {place} in time"),
    ],
)
def test_machines_that_do_not_meet_are_one_line(
    tmp_path: Path, host: str, says: str
) -> None:
    """An address that is nobody's, and a machine that never comes."""
    place = f"{host}:{free_port()}"
    meeting = [
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={place}",
        f"--rdzv-conf={SOON}",
        "--rdzv-id=x",
    ]
    ended = launched(tmp_path, "", "--nnodes=2", *meeting)
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"launch.py: {says.format(place=place)}")
    assert ended.returncode == 1


@pytest.mark.slow
def test_a_worker_has_the_environment_of_the_launcher(tmp_path: Path) -> None:
    ended = launched(
        tmp_path,
        "import os; print(os.environ.get('TORCH_CPP_LOG_LEVEL'))",
        "--standalone",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"{os.environ.get('TORCH_CPP_LOG_LEVEL')}\n"


ONE_DIES = "import os, sys, time\nif os.environ['RANK'] == '1':\n    {}\ntime.sleep(60)"


@pytest.mark.parametrize(
    ("worker", "code", "says"),
    [
        (ONE_DIES.format("sys.exit(2)"), 2, []),
        (
            ONE_DIES.format("os.kill(os.getpid(), 9)"),
            137,
            ["launch.py: process 1 was killed by SIGKILL"],
        ),
    ],
)
def test_the_exit_code_is_that_of_the_processes(
    launch: Callable, worker: str, code: int, says: list[str]
) -> None:
    started = launch(worker, "--standalone", "--nproc-per-node=2")
    assert (started.wait(60), started.errors.splitlines()) == (code, says)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_a_stop_waits_for_the_processes_and_has_the_code_of_a_stop(
    launch: Callable, number: int, code: int
) -> None:
    # the pause: the launcher, too, has to be past the start, in which it does not know
    # of its process yet
    worker = (
        "import signal, sys, time\n"
        "def save(*_):\n    time.sleep(0.3)\n    print('saved', flush=True)\n    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save)\nsignal.signal(signal.SIGINT, save)\n"
        "time.sleep(0.5)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    started = launch(worker, "--standalone")
    started.wait_until(lambda: started.outputs[0] == "ready\n")
    started.send(number)
    assert (started.wait(60), started.outputs[0], "Traceback" in started.errors) == (
        code,
        "ready\nsaved\n",
        False,
    )


@pytest.mark.slow
def test_a_process_that_does_not_stop_is_killed_after_the_time_of_the_flag(
    launch: Callable,
) -> None:
    worker = (
        "import signal, time\nsignal.signal(signal.SIGTERM, "
        "signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    started = launch(worker, "--standalone", "--shutdown-timeout=1")
    started.wait_until(lambda: started.outputs[0] == "ready\n")
    started.send(signal.SIGTERM)
    assert started.wait(25) == 75  # torchrun's own limit is 30 s
    assert "forcefully exiting via" in started.errors
