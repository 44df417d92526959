"""Signals, control files and kills: how a job leaves, and that it ends as if nothing
had been."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from random import Random

import pytest

from tests.conftest import ROOT
from tests.faults.conftest import INT, KILL, STEP, TERM, Job
from toolkit.train.checkpoint_store import verify

DRAW = "toolkit.models.qwen_image.model:QwenImageModel.predict_velocity"
ENCODE = "toolkit.data.batches.latent_cache:CacheEntry.encode"
PROBE = 1
"""Calls of STEP and DRAW before everything else: the largest batch is tried first."""

SET = 4
"""Calls of DRAW for one set of samples: two steps, each with and without the prompt."""


def micro_batch(step: int, which: int, done: int = 0) -> int:
    """The call of STEP for a micro-batch (1 or 2) of a step, in a process that begins
    with `done` steps."""
    return PROBE + 2 * (step - done - 1) + which


@pytest.mark.slow
def test_a_stop_during_caching_keeps_what_is_cached_and_control_files_are_answered(
    job: Job, same
) -> None:
    """`save_now` in step 1, `stop` in step 2."""
    child = job.start(faults=[("kill_self", ENCODE, 2, TERM), ("slow", ENCODE, 0.05)])
    assert child.wait() == 75, child.output
    kept = {
        path: path.stat().st_mtime_ns
        for path in job.cwd.glob("output/_cache/*/*/*.safetensors")
    }
    assert 1 <= len(kept) < 3
    assert job.states() == [] and not (job.folder / "metrics.jsonl").exists()
    control = job.folder / "control"
    said = job.run(
        faults=[
            ("touch_at", STEP, micro_batch(step, 1), str(control / name))
            for step, name in ((1, "save_now"), (2, "stop"))
        ]
    )
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, (
        "what was cached is encoded once"
    )
    assert (job.steps(), job.states(), job.status()) == ([1, 2], [1, 2], "stopped")
    assert not any(control.iterdir()), said
    (job.folder / "job_000000001.safetensors").unlink()
    job.forget_state(1)
    job.run()
    same()


@pytest.mark.slow
@pytest.mark.usefixtures("encoded")
def test_a_stop_during_the_last_sampling_draws_it_at_the_next_start(
    job: Job, whole: Job, same
) -> None:
    # Sets at steps 0, 3 and 6; 2 micro-batches in each of 6 steps.
    child = job.start(faults=[("kill_self", DRAW, PROBE + SET + 6 + SET + 6 + 1, TERM)])
    assert child.wait() == 75, child.output
    assert (job.states(), job.status()) == ([2, 4, 6], "stopped")
    assert len(list((job.folder / "samples").iterdir())) == 2
    job.run()
    same()


@pytest.mark.slow
@pytest.mark.usefixtures("encoded")
def test_a_stop_within_an_accumulation_drops_it_and_repeats_it_exactly(
    job: Job, same
) -> None:
    child = job.start(faults=[("kill_self", STEP, micro_batch(3, 1), TERM)])
    assert child.wait() == 75, child.output
    assert (job.states(), job.steps(), job.status()) == ([2], [1, 2], "stopped")
    child = job.start(faults=[("kill_self", STEP, micro_batch(4, 1, done=2), INT)])
    assert child.wait() == 130, child.output
    assert (job.states(), job.steps()) == ([2, 3], [1, 2, 3]), (
        "what was not on disk yet is saved"
    )
    assert not (job.folder / "job.safetensors").exists()
    job.run()
    assert job.states() == [2, 3, 4, 6]
    job.forget_state(3)
    same()


@pytest.mark.slow
@pytest.mark.usefixtures("encoded")
def test_a_paused_process_goes_on_and_a_terminal_that_is_closed_stops_it_soon(
    job: Job,
) -> None:
    job.change(train__steps=5000, sample=None)
    child = job.start()
    child.wait_until(lambda: len(job.steps()) >= 2)
    child.send(signal.SIGSTOP)
    time.sleep(0.2)
    before = job.steps()
    time.sleep(0.2)
    assert job.steps() == before
    child.send(signal.SIGCONT)
    child.wait_until(lambda: len(job.steps()) > len(before))
    child.send(signal.SIGHUP)
    assert child.wait() == 75, child.output
    assert "next: " not in child.output  # of a run that is not finished
    assert job.states()[-1] == job.steps()[-1] < 5000


@pytest.mark.slow
@pytest.mark.usefixtures("encoded")
def test_a_second_signal_leaves_at_once_and_the_last_save_is_good(job: Job) -> None:
    # Each micro-batch takes half a minute once the first save is done.
    job.change(sample=None)
    child = job.start(faults=[("slow_from", STEP, micro_batch(3, 1), 30)])
    child.wait_until(lambda: job.states() == [2])
    time.sleep(0.3)
    child.send(signal.SIGTERM)
    time.sleep(0.3)
    assert child.poll() is None, "the first signal waits for the micro-batch"
    child.send(signal.SIGTERM)
    assert child.wait(20) == 75, child.output  # and not after half a minute
    assert "Traceback" not in child.output
    assert job.states() == [2] and verify(job.folder / "state/step_000000002") is None


# ------------------------------------------------------------ output that nobody takes


@pytest.mark.slow
@pytest.mark.usefixtures("encoded")
def test_output_that_is_lost_ends_no_training(job: Job) -> None:
    """As `| tee` that is killed, an ssh connection that breaks, then a disk that is
    full."""
    job.change(sample=None, train__steps=1)
    command = [sys.executable, str(ROOT / "run.py"), str(job.write())]
    child = subprocess.Popen(
        command, cwd=job.cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    child.stdout.close()
    assert child.wait(120) == 0
    assert job.steps() == [1]
    job.change(train__steps=2)
    job.write()
    with open("/dev/full", "w") as full:
        into_full = partial(
            subprocess.run,
            command,
            cwd=job.cwd,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
        result = into_full()
        lines = [
            line
            for line in result.stderr.splitlines()
            if not line.startswith("warning: ")
        ]
        assert (
            len(lines) == 1
            and "standard output is lost ([Errno 28] No space left on device)"
            in lines[0]
        )
        assert result.returncode == 0
        assert job.steps() == [1, 2]
        assert (job.folder / "log.txt").read_text().count(
            "saved output/job/job.safetensors"
        ) == 2
        # A plan that cannot be printed is a failure.
        command.append("--dry-run")
        result = into_full()
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "No space left on device" in result.stderr


# ------------------------------------------------------------ two runs in one folder


@pytest.mark.slow
@pytest.mark.usefixtures("encoded")
def test_a_second_run_in_the_folder_is_refused_and_a_killed_one_taken_over(
    job: Job, same
) -> None:
    first = job.start(
        faults=[("hold", STEP, micro_batch(3, 1), str(job.cwd / "never"))]
    )
    first.wait_until(lambda: len(job.steps()) >= 2)
    said = job.run(code=1)
    assert (
        f"process {first.pid} on {socket.gethostname()} is running in this folder"
        in said
    )
    assert first.poll() is None
    assert (job.steps() == sorted(set(job.steps()))) and "refused" not in first.output
    first.send(signal.SIGKILL)
    first.wait()
    said = job.run()
    assert (
        f"process {first.pid} on {socket.gethostname()}" in said
        and "stale lock" in said
    )
    same()


# ------------------------------------------------------------ clocks


@pytest.mark.slow
@pytest.mark.usefixtures("encoded")
def test_a_clock_that_jumps_back_and_ahead_changes_nothing(job: Job, same) -> None:
    child = job.start(
        faults=[("wall_clock", -4e8, 8), ("kill_self", STEP, micro_batch(5, 2), KILL)]
    )
    assert child.wait() == -KILL
    assert job.steps() == [1, 2, 3, 4]
    for age, path in enumerate(sorted(job.folder.rglob("*"))):
        os.utime(path, (1e9 - age, 1e9 - age))
    assert "resuming from" in job.run(faults=[("wall_clock", 4e8, 3)])
    same()


# ------------------------------------------------------------ random kills of whole
# jobs


def killed_until_done(job: Job, kills: int, seed: int) -> None:
    """Starts the job again and again, kills it at random moments so many times, then
    lets it finish.

    A third of the kills come at a random time after the start, the others some steps
    after the newest state.
    """
    draw, metrics = Random(seed), job.folder / "metrics.jsonl"
    for kill in range(kills):
        child = job.start()
        moment = time.monotonic() + (draw.uniform(0, 1) if kill % 3 == 0 else 60)
        target = max(job.states(), default=0) + draw.randrange(1, 9)
        pause = draw.uniform(0, 0.02)
        while time.monotonic() < moment and child.poll() is None:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= target:
                break
            time.sleep(0.001)
        time.sleep(pause)
        assert child.poll() is None, (
            f"over before kill {kill + 1} of {kills}: {child.output}"
        )
        child.send(signal.SIGKILL)
        assert child.wait() == -KILL
    job.run()


def survives(job: Job, kills: int, steps: int) -> None:
    job.change(
        train__steps=steps,
        save__save_every=5,
        save__max_states_to_keep=2,
        sample__sample_every=50,
    )
    job.name = "whole"
    job.run()
    expected = job.result()
    job.name = "job"
    killed_until_done(job, kills, seed=kills)
    got = {name.replace("job", "whole"): value for name, value in job.result().items()}
    assert got.keys() == expected.keys()
    differing = [
        name
        for name in got
        if got[name] != expected[name] and not name.startswith("whole")
    ]
    assert differing == []
    # the file's metadata holds the job's name
    for name in (name for name in got if name.startswith("whole")):
        assert without_name(got[name]) == without_name(expected[name]), name


def without_name(file: bytes) -> bytes:
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    for key in ("ss_output_name", "modelspec.title"):
        del header["__metadata__"][key]
    return json.dumps(header, sort_keys=True).encode() + file[8 + length :]


@pytest.mark.slow
@pytest.mark.usefixtures("encoded")
def test_random_kills_end_in_the_same_bytes(job: Job) -> None:
    survives(job, kills=3, steps=30)


@pytest.mark.soak
def test_two_hundred_random_kills_end_in_the_same_bytes(job: Job) -> None:
    survives(job, kills=200, steps=1600)
