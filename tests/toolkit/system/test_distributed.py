"""Who is who among the processes of a run, what they exchange, and how they learn that
one is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import pytest
import torch
import torch.distributed as dist

from tests.processes import environment, in_processes, python
from toolkit.errors import RunError, UserError
from toolkit.system import distributed
from toolkit.system.distributed import PeerFailedError, ProcessGroup
from toolkit.system.distributed_env import (
    SINGLE_PROCESS,
    DistributedEnv,
    read_distributed_env,
)
from toolkit.system.sharded_param import RowShard


def test_alone_nothing_is_exchanged() -> None:
    process_group, tensor = ProcessGroup(), torch.ones(2)
    process_group.init_process_group()
    process_group.all_reduce_sum([tensor])
    process_group.broadcast([tensor])
    process_group.assert_equal_across_ranks({"it": 1})
    assert (
        process_group.all_gather_object("a") == ["a"]
        and process_group.any(True)
        and not process_group.any(False)
    )
    assert process_group.run_on_rank0_and_broadcast(lambda: 5) == 5 and torch.equal(
        tensor, torch.ones(2)
    )
    assert process_group.device(torch.device("cpu")) == torch.device("cpu")


def exchange(process_group: ProcessGroup) -> dict:
    tensors = [
        torch.full((3,), float(process_group.rank + 1)),
        torch.full((2, 2), 0.1 * process_group.rank, dtype=torch.bfloat16),
    ]
    process_group.all_reduce_sum(tensors)
    first = [torch.tensor([float(process_group.rank)])]
    process_group.broadcast(first)
    done = []
    process_group.run_on_rank0_then_barrier(lambda: done.append(process_group.rank))
    return {
        "gathered": process_group.all_gather_object(("rank", process_group.rank)),
        "any": (process_group.any(process_group.rank == 1), process_group.any(False)),
        "made": process_group.run_on_rank0_and_broadcast(
            lambda: f"by {process_group.rank}"
        ),
        "sums": [tensor.tolist() for tensor in tensors],
        "first": first[0].item(),
        "done": done,
    }


def test_all_processes_see_the_same() -> None:
    first, second = in_processes(2, exchange)
    assert first.pop("done") == [0] and second.pop("done") == []
    assert first == second
    assert first["gathered"] == [("rank", 0), ("rank", 1)]
    assert (
        first["any"] == (True, False)
        and first["made"] == "by 0"
        and first["first"] == 0.0
    )
    assert first["sums"][0] == [3.0] * 3


def test_tensors_beyond_one_bucket_are_all_added_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("toolkit.system.distributed.BUCKET_BYTES", 8)

    def work(process_group: ProcessGroup) -> list:
        tensors = [
            torch.full((size,), 1.0 + process_group.rank) for size in (1, 3, 2, 1)
        ]
        process_group.all_reduce_sum(tensors)
        return [tensor.tolist() for tensor in tensors]

    assert in_processes(2, work) == [[[3.0], [3.0] * 3, [3.0] * 2, [3.0]]] * 2


def test_the_first_process_collects_the_rows_of_all() -> None:
    dtype = torch.bfloat16
    whole = torch.arange(24.0).view(4, 3, 2) + 0.001

    def work(process_group: ProcessGroup) -> tuple:
        shard = RowShard.of(whole.shape, process_group.rank, process_group.world_size)
        found = (
            process_group.gather_to_rank0(
                whole[shard.start : shard.stop], shard, dtype
            ),
            process_group.gather_to_rank0(torch.ones(2)),
        )
        return tuple(
            None if tensor is None else (tensor.tolist(), tensor.dtype)
            for tensor in found
        )

    expected = whole.to(dtype)
    first, *others = in_processes(3, work)
    assert first == ((expected.tolist(), expected.dtype), ([1.0, 1.0], torch.float32))
    assert others == [(None, None)] * 2


def test_alone_what_is_collected_is_a_copy() -> None:
    tensor = torch.ones(2)
    copy = ProcessGroup().gather_to_rank0(tensor)
    tensor.zero_()
    assert copy.tolist() == [1.0, 1.0]


def test_what_differs_is_named_with_its_process() -> None:
    errors = in_processes(
        3,
        lambda process_group: process_group.assert_equal_across_ranks(
            {"steps": 2, "the seed": 7 + process_group.rank // 2}
        ),
    )
    assert all(isinstance(error, RunError) for error in errors)
    assert (
        "the seed is not the same in all processes: 7 in process 0, 8 in process 2"
        in str(errors[0])
    )


def test_who_is_killed_is_missed_at_the_next_exchange() -> None:
    def work(process_group: ProcessGroup) -> None:
        process_group.all_gather_object("both are here")
        if process_group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        process_group.all_gather_object("one is gone")

    lost, killed = in_processes(2, work, minutes=5)
    assert killed is None and isinstance(lost, PeerFailedError), lost
    assert "died without reporting an error" in str(lost)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("meet", "how"),
    [
        (lambda group: group.all_gather_object("late"), {"minutes": 0.5 / 60}),
        (lambda group: group.init_process_group(0.5 / 60), {"connected": False}),
    ],
    ids=["hangs", "never arrives"],
)
def test_who_is_not_met_is_given_up_after_the_time_that_was_asked_for(
    meet: Callable[[ProcessGroup], object], how: dict
) -> None:
    def work(process_group: ProcessGroup) -> PeerFailedError | None:
        if process_group.rank == 1:
            process_group._store.wait(["given up"])  # no exchange, and no end
            return None
        try:
            meet(process_group)
        except PeerFailedError as lost:
            process_group._store.set("given up", "yes")
            return lost

    lost, _ = in_processes(2, work, **how)
    assert "died without reporting an error" in str(lost)


ADVICE = "Use less of everything."

OUT_OF_MEMORY = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB."),
    "NCCL": dist.DistBackendError(
        "NCCL error. Last error:\nCuda failure 2 'out of memory'"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("torch.distributed.all_reduce", OUT_OF_MEMORY["NCCL"]),
        ("torch.cat", OUT_OF_MEMORY["torch"]),
    ],
    ids=["exchange", "before it"],
)
def test_a_process_that_runs_out_of_memory_says_so_with_advice_and_the_others_repeat_it(
    monkeypatch: pytest.MonkeyPatch, function: str, error: RuntimeError
) -> None:
    """The second process has no memory for an exchange, or for what is put together for
    one."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    def work(process_group: ProcessGroup) -> tuple[int | None, list[str]]:
        process_group.oom_hint = lambda: ADVICE
        if not process_group.is_main_process:
            monkeypatch.setattr(function, fail)
        return leave_together(
            process_group,
            [None, None],
            lambda: process_group.all_reduce_sum([torch.ones(2)]),
        )

    first, second = in_processes(2, work)
    message = f"out of memory in an exchange with the other processes. {ADVICE}"
    assert second == (1, [message])
    assert first == (1, [f"rank 1 of 2 failed, shutting down: {message}"])


def leave_together(
    process_group: ProcessGroup,
    errors: list[BaseException | None],
    work: Callable[[], object] = lambda: None,
) -> tuple[int | None, list[str]]:
    """Exit code and what was shown, when each process ends by its own of `errors`, or
    by what `work` raises."""
    shown: list[str] = []

    def report(error: BaseException) -> int:
        shown.append(str(error))
        return getattr(error, "exit_code", 1)

    try:
        with process_group.fail_together(report):
            if error := errors[process_group.rank]:
                raise error
            work()
            process_group.all_gather_object("going on")
    except SystemExit as leaving:
        if process_group.is_main_process:
            # About as long as an interpreter takes to exit: the store of the others
            # ends with this process.
            time.sleep(0.4)
        return leaving.code, shown
    return 0, shown


@pytest.mark.slow
def test_the_first_process_repeats_why_another_one_failed() -> None:
    first, second = in_processes(2, leave_together, [None, UserError("no such file")])
    assert second == (2, ["no such file"])
    assert first == (2, ["rank 1 of 2 failed, shutting down: no such file"])


@pytest.mark.slow
def test_a_mistake_that_all_find_is_shown_once() -> None:
    ends = in_processes(
        2, leave_together, [UserError("no such key"), UserError("no such key")]
    )
    assert [code for code, _ in ends] == [2, 2]
    assert sorted(len(shown) for _, shown in ends) == [0, 1]


@pytest.mark.slow
def test_a_rank_that_finds_the_mistake_later_does_not_show_it_again() -> None:
    """The store is in rank 0, and ends with it: it waits for the others, which read
    there that it has reported."""

    def work(process_group: ProcessGroup) -> tuple[int | None, list[str]]:
        time.sleep(0.8 * process_group.rank)
        return leave_together(process_group, [UserError("no such key")] * 2)

    assert in_processes(2, work, connected=False) == [(2, ["no such key"]), (2, [])]


@pytest.mark.slow
def test_a_rank_that_is_killed_before_all_are_connected_is_not_waited_for_long(
    monkeypatch,
) -> None:
    monkeypatch.setattr(distributed, "SHUTDOWN_GRACE_S", 0.5)

    def work(process_group: ProcessGroup) -> tuple[int | None, list[str]]:
        if process_group.rank:
            os._exit(1)
        return leave_together(process_group, [UserError("no such key"), None])

    assert in_processes(2, work, connected=False) == [(2, ["no such key"]), None]


def test_a_signal_while_the_interpreter_closes_changes_nothing() -> None:
    program = (
        "import atexit, signal\n"
        "from toolkit.system import distributed, signals\n"
        "signals.install()\n"
        f"atexit.register(signal.raise_signal, {int(signal.SIGTERM)})\n"
        "distributed.exit_process(0)\n"
    )
    python(program, seconds=60, said="")


def test_the_end_of_a_stop_waits_for_no_thread() -> None:
    program = (
        "import concurrent.futures, time\n"
        "from toolkit.system import distributed\n"
        "concurrent.futures.ThreadPoolExecutor().submit(time.sleep, 60)\n"
        "distributed.exit_process(130)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == 130


def test_a_store_that_does_not_answer_is_asked_once(monkeypatch) -> None:
    """As one on a machine that has gone without closing its connections."""
    monkeypatch.setattr(distributed, "RENDEZVOUS_TIMEOUT_MIN", 0.05 / 60)
    answered, asked = threading.Event(), []

    def ask(store: object) -> str:
        asked.append(store)
        answered.wait(30)
        return "too late"

    group = ProcessGroup(DistributedEnv(0, 2), store=object())
    assert [group._store_call(ask, "lost") for _ in range(2)] == ["lost", "lost"]
    assert len(asked) == 1
    answered.set()


def test_without_a_launcher_a_process_is_alone() -> None:
    assert (
        read_distributed_env({})
        == read_distributed_env({"WORLD_SIZE": "1", "RANK": "0"})
        == SINGLE_PROCESS
    )
    assert SINGLE_PROCESS.is_single_process and SINGLE_PROCESS.is_main_process


def test_a_launcher_says_which_process_this_is() -> None:
    assert read_distributed_env(environment(1, 4, 29500)) == DistributedEnv(
        rank=1, world_size=4, local_rank=1
    )


@pytest.mark.parametrize(("on_this_machine", "attempt"), [("4", 2), ("2", 0)])
def test_the_attempts_of_one_launcher_are_told_apart(
    on_this_machine: str, attempt: int
) -> None:
    launched = {"LOCAL_WORLD_SIZE": on_this_machine, "TORCHELASTIC_RESTART_COUNT": "2"}
    assert read_distributed_env(environment(1, 4, 29500) | launched) == DistributedEnv(
        rank=1, world_size=4, local_rank=1, attempt=attempt
    )


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"RANK": ""}, "RANK is not set"),
        ({"RANK": "2"}, "RANK='2'"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK='-1'"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused(
    changed: dict[str, str], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        read_distributed_env(environment(0, 2, 29500) | changed)
