"""One run at a time in a folder: who is refused, what is taken over, and when a lock is
let go."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import until
from toolkit.errors import RunError
from toolkit.train import lock
from toolkit.train.lock import run_lock

ROOT = Path(__file__).resolve().parents[3]
HOLD = "import sys, time; from pathlib import Path; from toolkit.train.lock import run_lock\n"
HOLD += "with run_lock(Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)"


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen]]:
    """Another process that owns the folder."""
    started = []

    def start() -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        started.append(
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        )
        assert started[-1].stdout.readline() == "mine\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def watched_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "WATCH_EVERY_S", 0.001)


def owner(**changes) -> dict:
    return {
        "pid": 4711,
        "host": "elsewhere",
        "boot": "another",
        "beat": time.time(),
        **changes,
    }


def leave_owner(folder: Path, **changes) -> None:
    (folder / lock.FILE).write_text(json.dumps(owner(**changes)), encoding="utf-8")


def test_a_second_process_is_refused_and_told_whose_folder_it_is(
    tmp_path: Path, hold
) -> None:
    other = hold()
    words = f"process {other.pid} on {socket.gethostname()} is running"
    with pytest.raises(RunError, match=words) as refused, run_lock(tmp_path):
        pytest.fail("two owners")
    assert str(tmp_path) in str(refused.value)
    assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == other.pid, (
        "the refused one left its name"
    )


def test_the_lock_of_a_killed_process_is_taken_over_with_a_note(
    said: list[str], tmp_path: Path, hold
) -> None:
    other = hold()
    other.send_signal(signal.SIGKILL)
    other.wait()
    with run_lock(tmp_path):
        assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()
    assert len(said) == 1
    assert (
        f"process {other.pid} on {socket.gethostname()}" in said[0]
        and "stale lock" in said[0]
    )


def test_after_a_good_end_nothing_is_left_to_say(
    said: list[str], tmp_path: Path
) -> None:
    for _ in range(2):
        with run_lock(tmp_path):
            pass
    with pytest.raises(KeyError), run_lock(tmp_path):
        raise KeyError
    with run_lock(tmp_path):
        pass
    assert said == []
    assert (tmp_path / lock.FILE).read_text() == ""


@pytest.mark.parametrize(
    ("silent_s", "watched_s"), [(0, 180), (100, 80), (600, 75), (-3600, 180)]
)
def test_an_owner_on_another_host_is_watched_until_it_was_silent_for_three_minutes(
    tmp_path: Path, monkeypatch, silent_s: float, watched_s: int
) -> None:
    """Its machine may be gone, so the run goes on here without anybody's help. Below 0
    its clock is ahead."""
    looks = []
    monkeypatch.setattr(lock.time, "sleep", looks.append)
    leave_owner(tmp_path, beat=time.time() - silent_s)
    with run_lock(tmp_path):
        assert abs(len(looks) - watched_s) <= 1


@pytest.mark.parametrize(
    "gone",
    [
        {"beat": time.time() - lock.STALE_AFTER_S - 5},  # silent for long
        {"host": socket.gethostname()},  # this machine before it was started again
        {"boot": lock.boot_id()},  # this machine under the name of another container
    ],
    ids=["silent", "other boot", "other container"],
)
@pytest.mark.skipif(
    not lock.boot_id(), reason="the system does not tell when it was started"
)
def test_an_owner_that_is_gone_is_taken_over_with_a_note(
    said: list[str], tmp_path: Path, gone: dict
) -> None:
    leave_owner(tmp_path, **gone)
    with run_lock(tmp_path):
        pass
    assert "stale lock" in said[-1] and "process 4711 on" in said[-1]
    assert len(said) == 1 + ("another" in gone.values() or "beat" in gone)


@pytest.mark.parametrize(
    "later", [{"beat": 0.5}, {"pid": 4712}], ids=["a heartbeat", "a successor"]
)
def test_an_owner_whose_clock_is_behind_is_refused_when_it_writes(
    tmp_path: Path, monkeypatch, later: dict
) -> None:
    behind = time.time() - 600
    leave_owner(tmp_path, beat=behind)
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == lock.WATCHES - 1:
            leave_owner(tmp_path, **{"beat": behind, **later})

    monkeypatch.setattr(lock.time, "sleep", sleep)
    with (
        pytest.raises(RunError, match=r"process \d+ on elsewhere is running"),
        run_lock(tmp_path),
    ):
        pytest.fail("two owners")


def test_an_owner_that_ends_while_it_is_watched_is_gone(
    tmp_path: Path, monkeypatch
) -> None:
    leave_owner(tmp_path, beat=time.time() - 600)
    monkeypatch.setattr(
        lock.time, "sleep", lambda _: (tmp_path / lock.FILE).write_text("")
    )
    with run_lock(tmp_path):
        assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()


def test_the_watch_ends_when_a_stop_is_requested(tmp_path: Path) -> None:
    leave_owner(tmp_path, beat=time.time() - 600)

    def check() -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError), run_lock(tmp_path, check):
        pytest.fail("not stopped")
    assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == 4711


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize(
    ("owner", "name", "without"),
    [(lock, "fcntl", None), (lock.fcntl, "flock", no_locks)],
)
def test_without_locks_of_the_system_the_heartbeat_decides(
    tmp_path: Path, monkeypatch, owner: object, name: str, without: object
) -> None:
    """No locks at all, or none of this file system: an owner on this very machine is
    not seen either."""
    monkeypatch.setattr(owner, name, without)
    here = {"host": socket.gethostname(), "boot": lock.boot_id()}
    with monkeypatch.context() as alive:
        beats = iter(range(1000))
        alive.setattr(
            lock.time,
            "sleep",
            lambda _: leave_owner(tmp_path, **here, beat=time.time() + next(beats)),
        )
        leave_owner(tmp_path, **here)
        with pytest.raises(RunError, match="process 4711"), run_lock(tmp_path):
            pytest.fail("two owners")
    with run_lock(tmp_path):
        pass


def test_the_owner_gives_signs_of_life(tmp_path: Path, monkeypatch) -> None:
    def beat() -> float:
        text = (tmp_path / lock.FILE).read_text()
        return json.loads(text)["beat"] if text else 0

    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.01)
    with run_lock(tmp_path):
        first = beat()
        until(lambda: beat() > first, 10)


@pytest.mark.parametrize("rest", ["", '{"pid": 4', "[]", '{"pid": 1}', "\0\0\0"])
def test_a_half_written_owner_is_nobody(
    said: list[str], tmp_path: Path, rest: str
) -> None:
    (tmp_path / lock.FILE).write_text(rest)
    with run_lock(tmp_path):
        pass
    assert said == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunError, match=r"file/run/run\.lock: cannot be written"),
        run_lock(tmp_path / "file" / "run"),
    ):
        pass
