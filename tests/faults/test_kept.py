"""Jobs whose base is quantized and kept: stopped while it is made, read or waited for,
on a disk that fails while blocks are read from it, killed again and again."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from random import Random

import pytest

from tests.faults.conftest import INT, KILL, STEP, TERM, Job
from tests.faults.nursery import Child
from toolkit.models.kept import kept_entries

ADD = "toolkit.models.kept:KeptWriter.add"
FILL = "toolkit.models.kept:KeptReader.fill"
WRITE = "toolkit.models.kept:_write"


@pytest.fixture
def kept_job(job: Job) -> Job:
    job.change(
        model__quantize=True,
        model__qtype="int8",
        model__blocks_to_swap=1,
        sample=None,
        train__steps=2,
    )
    return job


def models(job: Job) -> Path:
    return job.cwd / "output" / "_cache" / "models"


def stopped(child: Child, code: int) -> str:
    """Its output, once it has ended by a request."""
    said = child.ends_with(code)
    assert "Stopping at the next safe point" in said
    return said


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(TERM, 75), (INT, 130)])
def test_a_stop_is_noticed_after_one_block_that_is_quantized_or_read(
    kept_job: Job, number: int, code: int
) -> None:
    job = kept_job
    for place in (ADD, FILL):
        next_block = ("leave_at", place, 2)
        child = job.start(faults=[("kill_self", place, 1, number), next_block])
        stopped(child, code)
        assert job.steps() == [] and job.states() == []
        if place == ADD:
            assert list(models(job).iterdir()) == []  # what was begun is gone
            job.run(faults=[("kill_self", STEP, 2, number)], code=code)
    (entry,) = kept_entries(job.cwd / "output" / "_cache")
    assert f"read from {entry.folder.relative_to(job.cwd)}" in job.run()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(TERM, 75), (INT, 130)])
def test_a_stop_is_noticed_while_another_process_is_waited_for(
    kept_job: Job, number: int, code: int
) -> None:
    job = kept_job
    writer = job.start(faults=[("hold", ADD, 2, str(job.cwd / "go on"))])
    writer.wait_until(lambda: [*models(job).glob("*.tmp/*")])
    job.name = "other"
    waits = job.start()
    waits.wait_until(lambda: "waits for another process" in waits.output)
    waits.send(signal.Signals(number))
    stopped(waits, code)
    assert writer.poll() is None
    (job.cwd / "go on").touch()
    assert "kept in" in writer.ends_with()
    assert "read from" in job.run()


def cut_while_it_trains(job: Job) -> tuple[str, str]:
    """Cuts the files of the kept model off while a job uses them: what an error of the
    disk, or a server that is gone, is to a process that has mapped them. Returns the
    output, and the file that is named."""
    go_on = job.cwd / "go on"
    child = job.start(faults=[("hold", STEP, 3, str(go_on))])
    child.wait_until(lambda: "lora: " in child.output)
    (entry,) = kept_entries(job.cwd / "output" / "_cache")
    for file in entry.folder.glob("transformer*"):
        os.truncate(file, 4096)
    go_on.touch()
    said = child.ends_with(1)
    go_on.unlink()
    return said, f"{entry.folder.relative_to(job.cwd)}/transformer_blocks.1.safetensors"


@pytest.mark.slow
def test_a_disk_that_fails_while_blocks_are_read_is_a_line_that_names_the_kept_model(
    kept_job: Job,
) -> None:
    """In the start that makes it, and in one that reads it; the next start goes on."""
    for did in ("kept in", "read from"):
        said, name = cut_while_it_trains(kept_job)
        assert did in said
        (line,) = [line for line in said.splitlines() if line.startswith(name)]
        assert "model.keep_quantized: false" in line
        assert line in (kept_job.folder / "log.txt").read_text()
        assert kept_job.status() == "failed"
        kept_job.run(faults=[("kill_self", STEP, 2, TERM)], code=75)
    assert "read from" in kept_job.run()


def kill_starts(job: Job, kills: int) -> dict[str, int]:
    """Kills new starts at random moments between the fork and the first steps. Half of
    them have no kept model to begin with. Returns how many had written, and read,
    one."""
    draw = Random(kills)
    slow = [("slow", place, 0.05) for place in (ADD, FILL, WRITE)]
    spans = []
    for writes in (True, True, False):  # the first one encodes, too
        if writes:
            shutil.rmtree(models(job), ignore_errors=True)
        begun = time.monotonic()
        child = job.start(faults=slow)
        child.wait_until(job.steps)
        spans.append(time.monotonic() - begun)
        child.end()
        shutil.rmtree(job.folder)
    counted = {"wrote": 0, "read": 0, "left half": 0}
    for _ in range(kills):
        shutil.rmtree(job.folder, ignore_errors=True)
        if draw.random() < 0.5:
            shutil.rmtree(models(job), ignore_errors=True)
        span = spans[2 if kept_entries(models(job).parent) else 1]
        child = job.start(faults=slow)
        time.sleep(draw.uniform(0, 1.1 * span))
        child.send(signal.SIGKILL)
        assert child.wait() in (-KILL, 0)
        assert "damaged" not in child.output and "Traceback" not in child.output
        counted["wrote"] += "kept in" in child.output
        counted["read"] += "read from" in child.output
        counted["left half"] += any(models(job).glob("*.tmp"))
    shutil.rmtree(job.folder, ignore_errors=True)
    return counted


def survives(job: Job, kills: int) -> None:
    job.change(model__keep_quantized=False, sample=None)
    job.run()
    expected = job.result()
    shutil.rmtree(job.folder)
    job.change(model__keep_quantized=True, model__blocks_to_swap=1)
    counted = kill_starts(job, kills)
    assert min(counted.values()) >= kills // 30, counted
    job.run()
    found = job.result()
    assert found.keys() == expected.keys()
    # the options of the model are in the files' metadata
    assert found["metrics"] == expected["metrics"]
    for name in (name for name in found if name.endswith("job.safetensors")):
        ours, theirs = (result[name] for result in (found, expected))
        assert tensor_bytes(ours) == tensor_bytes(theirs), name
    (entry,) = kept_entries(job.cwd / "output" / "_cache")
    assert [*models(job).iterdir()] == [entry.folder]
    print(f"{kills} kills: {counted}")


def tensor_bytes(file: bytes) -> bytes:
    return file[8 + int.from_bytes(file[:8], "little") :]


@pytest.mark.slow
def test_killed_starts_leave_a_kept_model_that_is_whole_or_absent(
    kept_job: Job,
) -> None:
    survives(kept_job, kills=8)


@pytest.mark.soak
def test_three_hundred_killed_starts_end_in_the_same_bytes(kept_job: Job) -> None:
    survives(kept_job, kills=300)
