"""Who is who among the processes of a run, what they exchange, and how they learn that one is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NoReturn

import pytest
import torch
import torch.distributed as dist

from tests.processes import in_processes
from toolkit.errors import RunError, UserError
from toolkit.parallel import Lost, Team
from toolkit.parts import Part


def test_alone_nothing_is_exchanged() -> None:
    team, tensor = Team(), torch.ones(2)
    team.open()
    team.add_up([tensor])
    team.copy_from_first([tensor])
    team.require_same({"it": 1})
    assert team.gather("a") == ["a"] and team.any(True) and not team.any(False)
    assert team.from_first(lambda: 5) == 5 and torch.equal(tensor, torch.ones(2))
    assert team.device(torch.device("cuda:3")) == torch.device("cuda:3")


def exchange(team: Team) -> dict:
    tensors = [torch.full((3,), float(team.rank + 1)), torch.full((2, 2), 0.1 * team.rank, dtype=torch.bfloat16)]
    team.add_up(tensors)
    first = [torch.tensor([float(team.rank)])]
    team.copy_from_first(first)
    done = []
    team.first_does(lambda: done.append(team.rank))
    return {
        "gathered": team.gather(("rank", team.rank)),
        "any": (team.any(team.rank == 1), team.any(False)),
        "made": team.from_first(lambda: f"by {team.rank}"),
        "sums": [tensor.tolist() for tensor in tensors],
        "first": first[0].item(),
        "done": done,
    }


def test_all_processes_see_the_same() -> None:
    first, second = in_processes(2, exchange)
    assert first.pop("done") == [0] and second.pop("done") == []
    assert first == second
    assert first["gathered"] == [("rank", 0), ("rank", 1)]
    assert first["any"] == (True, False) and first["made"] == "by 0" and first["first"] == 0.0
    assert first["sums"][0] == [3.0] * 3


def test_tensors_beyond_one_bucket_are_all_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.parallel.BUCKET_BYTES", 8)

    def work(team: Team) -> list:
        tensors = [torch.full((size,), 1.0 + team.rank) for size in (1, 3, 2, 1)]
        team.add_up(tensors)
        return [tensor.tolist() for tensor in tensors]

    assert in_processes(2, work) == [[[3.0], [3.0] * 3, [3.0] * 2, [3.0]]] * 2


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_first_process_collects_the_rows_of_all(dtype: torch.dtype | None) -> None:
    whole = torch.arange(24.0).view(4, 3, 2) + 0.001

    def work(team: Team) -> tuple:
        part = Part.of(whole.shape, team.rank, team.size)
        found = team.collect(whole[part.start : part.stop], part, dtype), team.collect(torch.ones(2))
        return tuple(None if tensor is None else (tensor.tolist(), tensor.dtype) for tensor in found)

    expected = whole.to(dtype or torch.float32)
    first, *others = in_processes(3, work)
    assert first == ((expected.tolist(), expected.dtype), ([1.0, 1.0], torch.float32))
    assert others == [(None, None)] * 2


def test_alone_what_is_collected_is_a_copy() -> None:
    tensor = torch.ones(2)
    copy = Team().collect(tensor)
    tensor.zero_()
    assert copy.tolist() == [1.0, 1.0]


def test_what_differs_is_named_with_its_process() -> None:
    errors = in_processes(3, lambda team: team.require_same({"steps": 2, "the seed": 7 + team.rank // 2}))
    assert all(isinstance(error, RunError) for error in errors)
    assert "the seed is not the same in all processes: 7 in process 0, 8 in process 2" in str(errors[0])


def test_who_is_killed_is_missed_at_the_next_exchange() -> None:
    def work(team: Team) -> None:
        team.gather("both are here")
        if team.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        team.gather("one is gone")

    lost, killed = in_processes(2, work, minutes=5)
    assert killed is None and isinstance(lost, Lost), lost
    assert "gone without a word" in str(lost)


def test_who_hangs_is_given_up_after_the_time_that_was_asked_for() -> None:
    def work(team: Team) -> Lost | None:
        if team.rank == 1:
            team._store.wait(["given up"])  # no exchange, and no end
            return None
        try:
            team.gather("late")
        except Lost as lost:
            team._store.set("given up", "yes")
            return lost

    lost, _ = in_processes(2, work, minutes=0.5 / 60)
    assert "gone without a word" in str(lost)


ADVICE = "Use less of everything."

OUT_OF_MEMORY = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB."),
    "NCCL": dist.DistBackendError("NCCL error. Last error:\nCuda failure 2 'out of memory'"),
}


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
@pytest.mark.parametrize("function", ["torch.distributed.all_reduce", "torch.cat"])
def test_a_process_that_runs_out_of_memory_says_so_with_advice_and_the_others_repeat_it(
    monkeypatch: pytest.MonkeyPatch, function: str, error: RuntimeError
) -> None:
    """The second process has no memory for an exchange, or for what is put together for one."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    def work(team: Team) -> tuple[int | None, list[str]]:
        team.memory_advice = ADVICE
        if not team.is_first:
            monkeypatch.setattr(function, fail)
        return leave_together(team, [None, None], lambda: team.add_up([torch.ones(2)]))

    first, second = in_processes(2, work)
    message = f"out of memory in an exchange with the other processes. {ADVICE}"
    assert second == (1, [message])
    assert first == (1, [f"process 1 of 2 failed, so all end: {message}"])


def leave_together(
    team: Team, errors: list[BaseException | None], work: Callable[[], object] = lambda: None
) -> tuple[int | None, list[str]]:
    """Exit code and what was shown, when each process ends by its own of `errors`, or by what `work` raises."""
    shown: list[str] = []

    def report(error: BaseException) -> int:
        shown.append(str(error))
        return getattr(error, "exit_code", 1)

    try:
        with team.together(report):
            if error := errors[team.rank]:
                raise error
            work()
            team.gather("going on")
    except SystemExit as leaving:
        if team.is_first:
            time.sleep(1)  # as long as an interpreter takes to close: what the others look into goes with this process
        return leaving.code, shown
    return 0, shown


def test_the_first_process_repeats_why_another_one_failed() -> None:
    first, second = in_processes(2, leave_together, [None, UserError("no such file")])
    assert second == (2, ["no such file"])
    assert first == (2, ["process 1 of 2 failed, so all end: no such file"])


def test_a_mistake_that_all_find_is_shown_once() -> None:
    ends = in_processes(2, leave_together, [UserError("no such key"), UserError("no such key")])
    assert [code for code, _ in ends] == [2, 2]
    assert sorted(len(shown) for _, shown in ends) == [0, 1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_interpreter_closes_changes_nothing(number: signal.Signals) -> None:
    program = (
        "import atexit, signal\n"
        "from toolkit import interrupt, parallel\n"
        "interrupt.install()\n"
        f"atexit.register(signal.raise_signal, {int(number)})\n"
        "parallel.leave(0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
