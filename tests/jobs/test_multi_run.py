"""Several configs one after another."""

from __future__ import annotations

import pytest

from jobs.multi_run import run_series


@pytest.mark.parametrize(
    ("codes", "recover", "ran", "result"),
    [
        ([0, 0, 0], False, 3, 0),
        ([0, 1, 0], False, 2, 1),
        ([2, 1, 0], True, 3, 2),
        ([0, 1, 2], True, 3, 1),
        ([130, 0, 0], True, 1, 130),
        ([0, 75, 0], False, 2, 75),
    ],
)
def test_a_failure_ends_it_unless_recover_and_a_stop_always(
    codes: list[int], recover: bool, ran: int, result: int, capsys: pytest.CaptureFixture[str]
) -> None:
    started = []

    def run_one(config: str) -> int:
        started.append(config)
        return codes[int(config)]

    assert run_series(["0", "1", "2"], run_one, recover=recover) == result
    assert started == ["0", "1", "2"][:ran]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["0", "1", "2"]
    assert [line.endswith("not run") for line in lines] == [False] * ran + [True] * (3 - ran)


def test_one_config_needs_no_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_series(["a"], lambda config: 1, recover=False) == 1
    assert capsys.readouterr().out == ""
