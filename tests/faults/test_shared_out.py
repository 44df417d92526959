"""Jobs that train the model itself while two processes share it out: the same run as
with one, however it ends."""

from __future__ import annotations

import copy
import errno
import os
import re
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.conftest import (
    KILL,
    STEP,
    STEP_3_OF_TWO,
    TERM,
    Job,
    assert_same_but_for_rounding,
    assert_same_images,
    assert_same_tensors,
    run_together,
    start_together,
    tensors_of,
)

pytestmark = pytest.mark.slow

FORWARD = "toolkit.models.qwen_image.model:forward"
HANG = int(signal.SIGSTOP)

PICTURE, VALIDATION = 4, 2
"""Calls of FORWARD that each takes; the largest batch is one, and so is a step in a
process of two."""

IN_THE_PICTURE_OF_STEP_3 = 1 + VALIDATION + PICTURE + 2 + VALIDATION + 1 + 2
"""Each the second pass of it."""

FINAL = "job/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def section(small_section: dict) -> dict:
    """The small job, with whatever needs the weights of all processes: averages,
    images, validation, both files."""
    changed = copy.deepcopy(small_section)
    changed["network"] = {"type": "full"}
    changed["validation"] = {"fraction": 0.4, "every": 2, "timesteps": 2}
    changed["train"] |= {"parallel": "fsdp", "lr": 1e-3, "gradient_checkpointing": True}
    changed["save"] |= {"also": ["raw"]}
    return changed


@pytest.fixture
def job(job: Job, section: dict, encoded: None) -> Job:
    job.section = copy.deepcopy(section)
    return job


def assert_as_one(job: Job, whole: Job) -> None:
    """The job has come to the same end as the one that a single process ran, but for
    rounding."""
    assert (job.states(), job.status()) == (whole.states(), "finished")
    assert_same_but_for_rounding(job, whole)
    for file in sorted(whole.folder.glob("*/**/*.safetensors")):
        assert_same_tensors(job.folder / file.relative_to(whole.folder), file)


def trained_weights(job: Job) -> str:
    """Their number, as it is told."""
    return re.search(
        r"[\d,]+ trainable parameters", (job.folder / "log.txt").read_text()
    )[0]


def alone(job: Job) -> Job:
    """The same job in a folder of its own, run by one process."""
    made = Job(
        job.nursery, job.cwd / "alone", copy.deepcopy(job.section), started=job.started
    )
    shutil.copytree(job.cwd / "output" / "_cache", made.cwd / "output" / "_cache")
    made.run()
    return made


def test_rows_that_three_processes_cannot_share_evenly_are_trained_and_read_too(
    job: Job,
) -> None:
    """Two that stop, three that stop, and one."""
    del job.section["sample"], job.section["validation"]
    job.change(train__gradient_accumulation=6, train__steps=3)
    one = alone(job)
    for processes in (2, 3):
        stop = [("kill_self", STEP, 1 + 1, TERM)]  # in the first step after the trial
        run_together(job, 75, processes=processes, of_second=stop)
    assert job.states() == [1, 2]
    assert "resuming from" in job.run()
    assert_same_but_for_rounding(job, one)
    assert any(len(tensor) % 3 for tensor in load_file(job.folder / FINAL).values())
    assert_same_tensors(job.folder / FINAL, one.folder / FINAL)


def test_bf16_weights_are_rounded_at_random_as_in_one_process_bit_for_bit(
    job: Job,
) -> None:
    """Of two gradients in bf16 the sum is the same wherever it is made. What is around
    the blocks is not trained."""
    del job.section["sample"], job.section["validation"]
    job.section["network"] |= {"include_patterns": [r"transformer_blocks\..*"]}
    job.change(train__full_bf16=True, train__dtype="bf16", train__max_grad_norm=0)
    job.change(train__steps=2)
    one = alone(job)
    run_together(job)
    assert job.states() == one.states() == [2]
    for name in ("weights", "ema", "optimizer"):
        ours, theirs = (
            tensors_of(each.folder / "state/step_000000002" / f"{name}.safetensors")
            for each in (job, one)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items()), (
            name
        )


def test_stopped_in_the_middle_of_a_picture_it_trains_draws_validates_and_saves_as_one(
    job: Job,
) -> None:
    """All have their own weights again."""
    whole = alone(job)
    run_together(
        job, 75, of_each=[("kill_self", FORWARD, IN_THE_PICTURE_OF_STEP_3, TERM)]
    )
    assert (job.states(), job.status()) == ([2, 3], "stopped")
    run_together(job)
    job.forget_state(3)
    assert_as_one(job, whole)
    assert trained_weights(job) == trained_weights(whole)
    assert load_file(
        whole.folder / "state" / "step_000000006" / "optimizer.safetensors"
    ), "compared too"
    assert_same_images(job, whole)


def test_one_that_is_killed_within_a_save_costs_that_save(job: Job) -> None:
    """Begun by one process, and that two go on with, of which one is killed; then one
    cannot write its rows."""
    del job.section["sample"], job.section["validation"]
    job.change(train__steps=4)
    one = alone(job)
    job.run(faults=[("kill_self", STEP, 1 + 2 * 2 + 1, TERM)], code=75)
    assert job.states() == [2]
    hashed = "toolkit.train.sharded_state:sha256_of"
    first, second = start_together(job, of_second=[("kill_self", hashed, 1, KILL)])
    assert second.wait() == -KILL
    assert first.wait(20) == 1, first.output
    assert "resuming from" in first.output
    assert (
        len(first.errors.splitlines()) == 1
        and "died without reporting an error" in first.errors
    )
    assert job.states() == [2] and list(job.folder.glob("state/.tmp-4-*"))

    first, second = start_together(job, of_second=[("fail", hashed, 1, errno.ESTALE)])
    assert (first.wait(20), second.wait(20)) == (1, 1)
    why = f"output/job/state: cannot be written: {os.strerror(errno.ESTALE)}"
    [line], [own_line] = first.errors.splitlines(), second.errors.splitlines()
    assert (
        line.startswith("rank 1 of 2 failed")
        and line.endswith(why)
        and own_line.endswith(why)
    )
    assert job.states() == [2]

    assert "resuming from" in run_together(job)
    assert not list(job.folder.glob("state/.tmp-*"))
    assert_as_one(job, one)


def test_one_that_hangs_is_given_up_after_the_time_limit(job: Job) -> None:
    del job.section["sample"], job.section["validation"]
    job.change(train__ddp_timeout=0.04)
    first, _ = start_together(job, of_second=[("kill_self", STEP, STEP_3_OF_TWO, HANG)])
    assert first.wait() == 1, first.output
    assert (
        len(first.errors.splitlines()) == 1
        and "died without reporting an error" in first.errors
    )
