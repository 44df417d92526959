"""Jobs that two processes run together: the same run as with one, however it is
interrupted."""

from __future__ import annotations

import copy
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.distributed import TCPStore

from tests.faults.conftest import (
    KILL,
    STEP,
    STEP_3_OF_TWO,
    TERM,
    Job,
    assert_same_but_for_rounding,
    assert_same_images,
    draw_pictures,
    run_together,
    start_together,
)
from tests.faults.nursery import Fault
from tests.processes import environment, free_port, until
from toolkit.models.tiny import TinySpec, write_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("encoded")]


@pytest.fixture
def as_one(job: Job, whole: Job) -> Callable[[], None]:
    """Fails unless the job has come to the same end as the one that a single process
    ran, but for rounding."""

    def check() -> None:
        assert_same_but_for_rounding(job, whole)
        assert (job.states(), job.status()) == ([2, 4, 6], "finished")

    return check


def test_two_processes_stopped_by_one_of_them_save_once_and_one_goes_on(
    job: Job, as_one
) -> None:
    said = run_together(job, 75, of_second=[("kill_self", STEP, STEP_3_OF_TWO, TERM)])
    assert said.count("saved the checkpoint of step") == said.count("Stopped.") == 1, (
        said
    )
    log = (job.folder / "log.txt").read_text(encoding="utf-8")
    assert log.count("2 processes share the 2 x 1 images of each step: 1 x 1 each") == 1
    assert (job.states(), job.status()) == ([2, 3], "stopped")
    job.run()
    assert job.states() == [2, 3, 4, 6]
    job.forget_state(3)
    as_one()


def test_two_processes_that_share_out_the_model_draw_and_train_what_one_does(
    job: Job, whole: Job, as_one
) -> None:
    job.change(train__parallel="fsdp", train__gradient_checkpointing=True)
    run_together(job)
    as_one()
    assert_same_images(job, whole)


def test_a_lora_of_2_1_is_trained_by_two_processes_as_by_one(
    job: Job, tmp_path: Path
) -> None:
    """With drawn captions and a reference."""
    write_tiny_model(tmp_path / "model", TinySpec(arch="qwen_image_2"))
    folder, before = (
        draw_pictures(tmp_path / name, "a", "b", "c") for name in ("several", "before")
    )
    for file in folder.glob("*.txt"):
        file.write_text(
            f"{file.stem}\na drawing of {file.stem}\nsomething", encoding="utf-8"
        )
    job.section["datasets"][0] |= {
        "folder_path": str(folder),
        "captions": "lines",
        "control_path": str(before),
    }
    job.change(
        model__name_or_path=str(tmp_path / "model"),
        train__gradient_checkpointing=True,
        sample=None,
    )
    job.change(train__steps=2)

    def of(name: str) -> Job:
        (tmp_path / name).mkdir()
        return Job(
            job.nursery,
            tmp_path / name,
            copy.deepcopy(job.section),
            started=job.started,
        )

    one = of("alone")
    one.run()
    learned = load_file(one.folder / "job.safetensors")
    assert all(
        tensor.any()
        for name, tensor in learned.items()
        if "lora_B" in name and ".0." in name
    )
    for parallel in ("ddp", "fsdp"):
        job.change(train__parallel=parallel)
        two = of(parallel)
        run_together(two)
        log = (two.folder / "log.txt").read_text(encoding="utf-8")
        assert "2 processes share the 2 x 1 images of each step" in log
        assert (
            (two.states(), two.status())
            == (one.states(), one.status())
            == ([2], "finished")
        )
        assert_same_but_for_rounding(two, one)


def test_one_that_is_killed_ends_the_other_with_one_line(job: Job) -> None:
    job.change(sample=None)
    first, second = start_together(
        job, of_second=[("kill_self", STEP, STEP_3_OF_TWO, KILL)]
    )
    assert second.wait() == -KILL
    assert first.wait(20) == 1, first.output
    assert (
        len(first.errors.splitlines()) == 1
        and "died without reporting an error" in first.errors
    )
    assert job.states() == [2] and job.status() == "failed"
    assert "died without reporting an error" in (job.folder / "log.txt").read_text()


def test_one_without_memory_for_an_exchange_ends_both_with_advice(job: Job) -> None:
    job.change(sample=None)
    first, second = start_together(
        job, of_second=[("run_out_of_memory", "torch.distributed:all_reduce", 2)]
    )
    assert first.wait() == second.wait() == 1
    says = "out of memory in an exchange with the other processes. To save memory, in order of effect: "
    assert second.errors.startswith(says), second.errors
    assert first.errors == f"rank 1 of 2 failed, shutting down: {second.errors}"
    assert len(job.metrics()) == 1


def test_what_the_first_process_ends_ends_in_all(job: Job) -> None:
    job.change(sample=None)
    job.change(train__steps=12)
    job.section["validation"] = {"fraction": 0.4, "every": 5}
    job.section["stop_when"] = {"metric": "loss", "below": 100, "smooth": 2}
    said = run_together(job)
    assert (job.status(), job.steps()) == ("finished", [*range(1, 11)])
    assert said.count("validation loss") == 3 and said.count("the run is finished") == 1


def test_a_mistake_is_told_once(job: Job) -> None:
    job.change(train__fused_backward_pass=True)
    said = run_together(job, 2)
    assert said.count("train.fused_backward_pass: ") == 1
    assert not job.folder.exists()


UNLIKE: dict[str, tuple[Fault, str]] = {
    "a key": (
        ("environment", {"RATE": "0.02"}),
        "train.lr is not the same in all processes: 0.01 in process 0, 0.02",
    ),
    "the name": (
        ("environment", {"JOB": "other"}),
        "the name of the job is not the same in all processes",
    ),
    "the folder": (
        ("change_folder", "elsewhere"),
        "the run's folder is not the same in all processes: ",
    ),
    "the program": (
        ("set_value", "jobs.job:VERSION", "0.0.9"),
        "the program is not the same in all",
    ),
}
"""What is unlike in the second process, and what is said. Two runs that meet by mistake
are as two names."""


@pytest.mark.parametrize("what", UNLIKE)
def test_processes_with_unlike_jobs_do_not_begin(job: Job, what: str) -> None:
    fault, says = UNLIKE[what]
    job.change(train__lr="${RATE:-0.01}")
    job.name = "${JOB:-job}"
    (job.cwd / "elsewhere").mkdir()
    shutil.copy(job.write(), job.cwd / "elsewhere")
    first, second = start_together(job, of_second=[fault])
    assert (first.wait(), second.wait()) == (1, 1), first.output + second.output
    assert says in first.errors + second.errors
    assert not list(job.cwd.glob("**/output/*/config.yaml"))


@pytest.mark.parametrize(
    ("rank", "host"),
    [(0, "127.0.0.1"), pytest.param(1, "no-such-host.invalid", marks=pytest.mark.slow)],
)
def test_who_is_not_met_in_time_is_asked_for_in_one_line(
    job: Job, rank: int, host: str
) -> None:
    """A process that never comes, and another address than the first process has."""
    alone = environment(rank, 2, free_port()) | {"MASTER_ADDR": host}
    child = job.start(
        faults=[
            ("environment", alone),
            ("set_value", "toolkit.system.distributed:RENDEZVOUS_TIMEOUT_MIN", 0.01),
        ]
    )
    assert child.wait(30) == 1
    place = f"rank {rank} of 2: the processes did not meet at {host}:{alone['MASTER_PORT']}: "
    [ours] = child.errors.splitlines()
    assert ours.startswith(place)
    assert ours.endswith(
        ". Check MASTER_ADDR and MASTER_PORT, and that all of them were started."
    )
    assert not job.folder.exists()


def test_processes_that_are_started_anew_go_on(job: Job, as_one) -> None:
    """As by `torchrun --max-restarts`: its store stays, with all that is in it of those
    that failed."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launcher = {
        "MASTER_PORT": str(store.port),
        "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }

    def attempt(number: int) -> list[Fault]:
        return [("environment", launcher | {"TORCHELASTIC_RESTART_COUNT": str(number)})]

    job.change(sample=None)
    first, second = start_together(
        job, attempt(0), [("fail", STEP, STEP_3_OF_TWO, errno.EIO)]
    )
    assert first.wait() == second.wait() == 1
    # Whoever comes first must not take what it finds for a sign of the other one.
    late = [("slow", "toolkit.system.distributed:ProcessGroup.init_process_group", 1)]
    assert "resuming from" in run_together(job, of_each=attempt(1), of_second=late)
    as_one()


def test_torchrun_stopped_saves_once_and_is_not_restarted(
    job: Job, tmp_path: Path, as_one
) -> None:
    """With launchers that fork their workers, and by a stop file:
    `test_machines.py`."""
    job.change(sample=None)
    run_py = Path(__file__).resolve().parents[2] / "run.py"
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={free_port()}",
    ]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [*torchrun, "--max-restarts=1", run_py, job.write()]
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipe
    )
    metrics = job.folder / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_text(), 120, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert said.count("saved the checkpoint of step") <= 1, said
    assert (job.status(), said.count("resuming from")) == ("stopped", 0), said
    job.run()
    for step in set(job.states()) - {2, 4, 6}:
        job.forget_state(step)
    as_one()
