"""Weights & Biases for real, offline; and with a network that never answers."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from extensions.trackers.wandb_tracker import WandbTracker, run_id
from toolkit.errors import RunError

KEY = "c0ffee99" * 5
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Offline, and a home folder of its own."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return home


def records(folder: Path):
    """The records of the one offline run in a `wandb` folder: a log in LevelDB's format
    after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = folder.glob("offline-run-*/*.wandb")
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:  # the end of a block is left empty
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield Record.FromString(parts)
            parts = b""


def history(folder: Path) -> dict[str, dict[int, str]]:
    """Name -> step -> value as JSON."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for record in records(folder):
        for item in record.history.item if record.HasField("history") else ():
            found[item.key or "/".join(item.nested_key)][record.history.step.num] = (
                item.value_json
            )
    return found


@pytest.mark.slow
def test_a_run_is_kept_in_its_own_folder_without_the_key(
    tracked, picture: Path, environment: Path
) -> None:
    run = tracked(
        wandb_api_key=KEY,
        wandb_project="faces",
        wandb_run_name="third",
    )
    tracker = WandbTracker(run)
    tracker.scalars(1, {"loss/current": 0.5})
    tracker.image(2, "samples/0", picture)
    tracker.scalars(2, {"loss/current": 0.25})
    tracker.close()

    folder = run.folder / "wandb"
    found = history(folder)
    assert found["loss/current"] == {1: "0.5", 2: "0.25"}
    assert found["samples/0/_type"] == {2: '"image-file"'}
    [image] = folder.glob("offline-run-*/files/media/images/samples/*")
    assert image.read_bytes() == picture.read_bytes()
    [begun] = [record.run for record in records(folder) if record.HasField("run")]
    assert (begun.project, begun.display_name, begun.run_id) == (
        "faces",
        "third",
        run_id_of(run),
    )
    places = [
        path
        for root in (run.folder, environment)
        for path in root.rglob("*")
        if path.is_file()
    ]
    assert places and not [path for path in places if KEY.encode() in path.read_bytes()]


def run_id_of(run) -> str:
    return (run.folder / "wandb" / "run_id").read_text().strip()


def test_a_resume_goes_on_with_the_same_run_and_a_new_start_with_another(
    tracked,
) -> None:
    first = run_id(tracked())
    assert run_id(tracked(step=5)) == run_id(tracked(step=9)) == first
    assert run_id(tracked()) != first


@pytest.mark.slow
def test_a_child_that_fails_says_why(tracked, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    tracker = WandbTracker(tracked())
    tracker._child.wait()
    with pytest.raises(RunError, match=r"^ValidationError: .*mode.*nonsense"):
        tracker.scalars(1, {"loss": 1.0})


@pytest.mark.slow
def test_the_process_ends_though_the_network_never_answers(tracked) -> None:
    """A process of its own, as a run would end: wandb's child is left to itself, and
    ends a minute later at most."""
    silent = socket.create_server(("127.0.0.1", 0))
    program = f"""
import socket
from pathlib import Path
from toolkit.config.sections.output import LoggingConfig
from toolkit.train.trackers.tracker import RunInfo
from extensions.hooks.trackers import TrackerThread
run = RunInfo("job", Path({str(tracked().folder)!r}), 0, LoggingConfig(wandb_api_key={KEY!r}))
thread = TrackerThread("wandb", run)
for step in range(100):
    thread.put(lambda tracker, step=step: tracker.scalars(step, {{"loss": 1.0}}))
thread.end()
connection = socket.socket(fileno={silent.fileno()}).accept()  # from here on wandb waits for an answer
print(thread._tracker._child.pid, thread.wait(0.1))
"""
    environment = {
        **os.environ,
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        pass_fds=[silent.fileno()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    child, closed = done.stdout.split()
    # it is still there: the uploads were not waited for
    os.kill(int(child), signal.SIGKILL)
    assert closed == "False"
