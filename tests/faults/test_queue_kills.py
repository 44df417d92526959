"""Kills of what has to do with the queue: the shell above a job, the job, the runner,
all of them. Whatever is killed, two jobs are never on one GPU, and no entry is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from extensions.tools.ui.queue import DONE, FAILED, RUNNING, WAITING, start_of
from tests.extensions.tools.ui.test_queue import Yard, yard  # noqa: F401 - a fixture

KILLS = int(os.environ.get("QUEUE_KILLS", "24"))

KINDS = (
    "shell",
    "shell",
    "job",
    "job",
    "runner",
    "all",
    "shell and runner",
    "job and runner",
)
"""What is killed at once."""

JOB = """
import fcntl, json, os, sys, time
from pathlib import Path
job = json.loads(Path(sys.argv[1]).read_text())
folder = Path(job["run"])
if "--dry-run" in sys.argv:
    print(json.dumps({"folders": [str(folder)]}))
    sys.exit()
place = open(folder.parent / f"gpu{os.environ['CUDA_VISIBLE_DEVICES']}", "a")
try:
    fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the process ends, however it does
except BlockingIOError:
    with (folder.parent / "two").open("a") as file:
        file.write(f"{folder.name}\\n")
time.sleep(job["imports_s"])
folder.mkdir(exist_ok=True)
status = folder / "run.json"
step = json.loads(status.read_text())["step"] if status.exists() else 0
while step < job["steps"]:
    time.sleep(0.1)
    step += 1
    (folder / "new.json").write_text(json.dumps({"status": "running", "step": step}))
    os.replace(folder / "new.json", status)
(folder / "new.json").write_text(json.dumps({"status": "finished", "step": step}))
os.replace(folder / "new.json", status)
"""


def victims(yard: Yard) -> dict[str, list[int]]:  # noqa: F811
    """Kind -> processes that live."""
    running = [entry for entry in yard.queue.entries() if entry.state == RUNNING]
    shells = [entry.pid for entry in running if start_of(entry.pid) == entry.pid_start]
    jobs = [
        pid
        for entry in running
        for pid in yard.queue.processes(entry)
        if pid not in shells
    ]
    runners = [runner.pid for runner in yard.runners if runner.poll() is None]
    found = {
        "shell": shells,
        "job": jobs,
        "runner": runners,
        "all": shells + jobs + runners,
    }
    found |= {
        f"{kind} and runner": found[kind] + runners
        for kind in ("shell", "job")
        if found[kind] and runners
    }
    return {kind: pids for kind, pids in found.items() if pids}


@pytest.mark.slow
def test_no_kill_puts_two_jobs_on_a_gpu_or_loses_one(yard: Yard) -> None:  # noqa: F811
    """`QUEUE_KILLS=200` for a longer walk."""
    chance, done = random.Random(20), Counter[str]()
    yard.fake.write_text(JOB)
    output = yard.folder / "output"

    def add(name: str) -> str:
        job = {
            "run": str(output / name),
            "steps": chance.randint(1, 12),
            "imports_s": chance.uniform(0, 0.5),
        }
        (yard.folder / f"{name}.json").write_text(json.dumps(job))
        return yard.queue.add([f"{name}.json"], name, yard.folder).id

    ids = [add(f"j{index}") for index in range(4)]
    while done.total() < KILLS:
        if not any(runner.poll() is None for runner in yard.runners):
            yard.runners[:] = []
            yard.runner("0,1")
        if sum(entry.state in (RUNNING, WAITING) for entry in yard.queue.entries()) < 4:
            ids.append(add(f"j{len(ids)}"))
        time.sleep(chance.uniform(0, 0.4))
        found = victims(yard)
        if found.keys() & {"shell", "job"}:
            # the rarest kind so far: by chance alone one may never come
            kind = min(
                (kind for kind in KINDS if kind in found),
                key=lambda kind: (done[kind], chance.random()),
            )
            for pid in (
                found[kind]
                if kind == "all" or " " in kind
                else [chance.choice(found[kind])]
            ):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            done[kind] += 1
    for runner in yard.runners:
        runner.kill()
        runner.wait()
    while any(entry.state in (RUNNING, WAITING) for entry in yard.queue.entries()):
        yard.runner("0,1").wait(120)
    entries = {entry.id: entry for entry in yard.queue.entries()}
    assert not (output / "two").exists(), (output / "two").read_text()
    assert sorted(entries) == sorted(ids) and set(done) == set(KINDS), done
    for entry in entries.values():
        if entry.state == FAILED:
            assert entry.why == "was killed 4 times", entry
        else:
            status = json.loads(Path(entry.runs[0], "run.json").read_text())
            assert (entry.state, status["status"]) == (DONE, "finished"), entry
    print(
        f"{dict(done)}, {len(ids)} entries: {Counter(entry.state for entry in entries.values())}"
    )
