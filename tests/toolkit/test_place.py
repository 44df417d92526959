"""Who is who among the processes of a run."""

from __future__ import annotations

import pytest

from tests.processes import environment
from toolkit.errors import UserError
from toolkit.place import ALONE, Place, place_of


def test_without_a_launcher_a_process_is_alone() -> None:
    assert place_of({}) == place_of({"WORLD_SIZE": "1", "RANK": "0"}) == ALONE
    assert ALONE.alone and ALONE.is_first


def test_a_launcher_says_which_process_this_is() -> None:
    assert place_of(environment(1, 4, 29500)) == Place(rank=1, size=4, local_rank=1)


@pytest.mark.parametrize(("on_this_machine", "attempt"), [("4", 2), ("2", 0)])
def test_the_attempts_of_one_launcher_are_told_apart(on_this_machine: str, attempt: int) -> None:
    launched = {"LOCAL_WORLD_SIZE": on_this_machine, "TORCHELASTIC_RESTART_COUNT": "2"}
    assert place_of(environment(1, 4, 29500) | launched) == Place(rank=1, size=4, local_rank=1, attempt=attempt)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"RANK": ""}, "RANK is not set"),
        ({"RANK": "2"}, "RANK='2'"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK='-1'"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused(changed: dict[str, str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        place_of(environment(0, 2, 29500) | changed)
