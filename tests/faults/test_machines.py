"""Jobs that two machines run together, each a set of namespaces with its own network,
file systems and host name: the same run as on one, whatever is lost of them and
whenever."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import (
    KILL,
    STEP,
    STEP_3_OF_TWO,
    TERM,
    Job,
    assert_same_but_for_rounding,
)
from tests.faults.nursery import Fault, Nursery
from tests.machines import CEILING_S, Launched, TwoMachines, two_machines, why_not

pytestmark = pytest.mark.slow

SHORT_WATCH = ("set_value", "toolkit.train.lock:WATCH_EVERY_S", 0.002)
"""The lock of a process that was killed on another machine is watched for half a
second, not three minutes."""

SHORT_GRACE = ("set_value", "toolkit.system.distributed:SHUTDOWN_GRACE_S", 1.0)
"""Who is left waits so long, twice, for a store on the lost machine."""

TIMEOUT_MIN, SHORT_TIMEOUT_MIN = 0.25, 0.12
"""Longer than a busy machine takes for a step; the first, also than five seconds
without network and what these cost TCP."""

DIED = "died without reporting an error"


@pytest.fixture(scope="session", autouse=True)
def _possible() -> None:
    """Before all others, which take half a minute."""
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture
def machines(
    nursery: Nursery, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TwoMachines]:
    yield from two_machines(tmp_path_factory.getbasetemp(), nursery)


@pytest.fixture
def job(job: Job) -> Job:
    job.change(sample=None)
    return job


@pytest.fixture
def as_one(job: Job, whole: Job) -> Callable[[], None]:
    """Fails unless the job has come to the same end as the one that a single process
    ran, but for rounding."""

    def check() -> None:
        for step in set(job.states()) - {2, 4, 6}:
            job.forget_state(step)
        assert_same_but_for_rounding(job, whole)
        assert (job.states(), job.status()) == ([2, 4, 6], "finished")

    return check


def begun(
    job: Job,
    machines: TwoMachines,
    *holds: int,
    faults: Sequence[Sequence[Fault]] = ((), ()),
    **how: Any,
) -> list[Launched]:
    """The launchers of both machines, while both workers wait in step 3, after a save.
    holds: further calls of STEP in which a worker waits, see `go_on`."""
    job.write()
    calls = [STEP_3_OF_TWO, *holds]
    of_both = [
        SHORT_GRACE,
        *(
            ("hold", STEP, call, str(job.cwd / f"go{turn}"))
            for turn, call in enumerate(calls)
        ),
    ]
    started = machines.torchrun(
        job.cwd, faults=[[*of_both, *own] for own in faults], **how
    )
    wait_for_state(job, 2, started)
    for launched in started:
        assert launched.worker
    return started


def go_on(job: Job, turn: int = 0) -> None:
    """Ends the wait of the workers: the first, the second."""
    (job.cwd / f"go{turn}").touch()


def wait_for_state(job: Job, step: int, started: list[Launched]) -> None:
    started[0].child.wait_until(lambda: step in job.states(), CEILING_S)


def end_well(started: list[Launched]) -> None:
    codes = [launched.wait() for launched in started]
    assert codes == [0] * len(started), [launched.said for launched in started]


def test_without_locks_and_with_clocks_and_caches_of_their_own(
    job: Job, machines: TwoMachines, as_one: Callable[[], None]
) -> None:
    """A stop file ends all with 0, and nobody is restarted."""
    cache = job.folder.parent / "_cache"
    cache.mkdir(parents=True)
    machines.both[1].hide(cache)
    unlike = [[["no_locks"]], [["no_locks"], ["wall_clock", -60, 0]]]
    started = begun(job, machines, faults=unlike, launcher=["--max-restarts=2"])
    (job.folder / "control" / "stop").touch()
    go_on(job)
    end_well(started)
    assert job.status() == "stopped" and "resuming" not in started[0].said
    started = machines.torchrun(job.cwd, faults=unlike)
    end_well(started)
    log = (job.folder / "log.txt").read_text(encoding="utf-8")
    assert "2 processes share the 2 x 1 images of each step" in log
    as_one()
    assert sum(launched.said.count("training_seed") for launched in started) == 1


def test_a_lost_machine_is_done_without_and_two_go_on_when_it_is_back(
    job: Job, machines: TwoMachines, as_one: Callable[[], None]
) -> None:
    """With two, with one by itself as torchrun's elastic launch has it, with two
    again."""
    job.change(train__ddp_timeout=SHORT_TIMEOUT_MIN)
    # a busy machine
    limits = "last_call_timeout=5,join_timeout=120,keep_alive_interval=1,keep_alive_max_attempt=10"
    elastic = ["--nnodes=1:2", "--max-restarts=3", f"--rdzv-conf={limits}"]
    in_step_5_of_one = 1 + 2 * 2 + 1
    started = begun(job, machines, in_step_5_of_one, launcher=elastic)
    machines.lose(1)
    go_on(job)
    wait_for_state(job, 4, started)
    (job.folder / "control" / "stop").touch()
    go_on(job, 1)
    end_well(started[:1])
    assert DIED in started[0].said and started[0].said.count("resuming from") == 1
    machines.replace(1)
    started = machines.torchrun(job.cwd)
    end_well(started)
    log = (job.folder / "log.txt").read_text(encoding="utf-8")
    assert "2 processes share the 2 x 1 images of each step" in log
    as_one()


def test_a_network_that_is_gone_for_five_seconds_costs_these_and_one_that_stays_away_the_run(
    job: Job, machines: TwoMachines, as_one: Callable[[], None]
) -> None:
    job.change(train__ddp_timeout=TIMEOUT_MIN)
    started = begun(job, machines, STEP_3_OF_TWO + 2)
    machines.cable(False)
    go_on(job)
    time.sleep(5)
    assert job.states() == [2]
    machines.cable(True)
    wait_for_state(job, 4, started)
    assert job.steps() == [1, 2, 3, 4]
    machines.cable(False)
    go_on(job, 1)
    for launched in started:
        launched.wait_for_worker()
        assert DIED in launched.said, launched.said
    assert job.status() == "failed"
    job.run(faults=[SHORT_WATCH])
    as_one()


LOST: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "launcher 0": (("Stopped.", DIED), ("stopped", "failed", "running")),
    "machine 0": ((DIED,), ("running",)),
}
"""What is killed -> what one of these the others say, and how the run counts then (of a
worker: test_processes.py). The worker of a launcher is stopped as by a signal, and with
it the other one. With the first launcher the store is gone: whether all agree on the
stop before they miss it is a race."""


@pytest.mark.parametrize("what", LOST)
def test_what_is_lost_ends_the_run_on_both_and_one_goes_on(
    job: Job, machines: TwoMachines, as_one: Callable[[], None], what: str
) -> None:
    says, statuses = LOST[what]
    kind, _, index = what.partition(" ")
    gone = int(index)
    if kind == "machine":
        job.change(train__ddp_timeout=SHORT_TIMEOUT_MIN)
    started = begun(job, machines)
    if kind == "machine":
        machines.lose(gone)
    else:
        os.kill(started[gone].launcher, KILL)
    go_on(job)
    for launched in started:
        launched.wait_for_worker()
    assert any(end in started[1 - gone].said for end in says), started[1 - gone].said
    assert job.status() in statuses
    said = [launched.said for launched in started]
    assert job.states()[-1] == (job.steps()[-1] if job.status() == "stopped" else 2), (
        said
    )
    job.run(faults=[SHORT_WATCH])
    as_one()


def _hide_the_images(job: Job, machines: TwoMachines) -> Path:
    images = Path(job.section["datasets"][0]["folder_path"])
    machines.both[1].hide(images)
    return images


def _hide_the_state(job: Job, machines: TwoMachines) -> Path:
    machines.both[1].hide(job.folder)
    return job.folder


def _another_state(job: Job, machines: TwoMachines) -> Path:
    """Of the same step, as an older run in a folder of the machine's own has left
    it."""
    machines.both[1].replace_folder(job.folder, "state/step_000000002/MANIFEST.json")
    return job.folder


def _another_model(job: Job, machines: TwoMachines) -> Path:
    model = Path(job.section["model"]["name_or_path"])
    machines.both[1].replace_folder(model, "transformer/config.json")
    return model


REFUSED: dict[str, tuple[Callable[[Job, TwoMachines], Path], str]] = {
    "images": (_hide_the_images, "'{place}': "),
    "state": (
        _hide_the_state,
        "state/step_000000002: process 1 does not see this state",
    ),
    "another state": (
        _another_state,
        "state/step_000000002 is not the same in all processes",
    ),
    "model": (
        _another_model,
        "the model's transformer is not the same in all processes",
    ),
}
"""What is unlike on the second machine -> how a folder of it becomes so; what both
machines say. What two processes of one machine can have unlike too is in
test_processes.py."""


def test_what_is_unlike_on_the_machines_is_named_on_both(
    job: Job, machines: TwoMachines
) -> None:
    job.run(faults=[("kill_self", STEP, 1 + 2 * 2 + 1, TERM)], code=75)
    for what, (prepare, says) in REFUSED.items():
        place = prepare(job, machines)
        started = machines.torchrun(job.cwd)
        code = 2 if what == "images" else 1  # a mistake of the job
        assert [launched.wait() for launched in started] == [code, code], what
        for launched in started:
            assert says.format(place=place) in launched.said, launched.said
        machines.both[1].does("umount", place)
