"""Who is who among the processes of a run."""

from __future__ import annotations

import pytest

from tests.processes import environment
from toolkit.errors import UserError
from toolkit.system.distributed_env import (
    SINGLE_PROCESS,
    DistributedEnv,
    read_distributed_env,
)


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
