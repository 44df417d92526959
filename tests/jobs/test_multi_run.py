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
    codes: list[int],
    recover: bool,
    ran: int,
    result: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    started = []

    def run_one(config: str) -> int:
        started.append(config)
        return codes[int(config)]

    assert run_series(["0", "1", "2"], run_one, recover=recover) == result
    assert started == ["0", "1", "2"][:ran]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["0", "1", "2"]
    assert [line.endswith("not run") for line in lines] == [False] * ran + [True] * (
        3 - ran
    )


def test_one_config_needs_no_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_series(["a"], lambda config: 1, recover=False) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("found", "recover", "ran", "words", "result"),
    [
        (
            [0, 2, 0],
            False,
            [],
            ["not run", "mistake in the config (exit code 2)", "not run"],
            2,
        ),
        (
            [0, 2, 1],
            False,
            [],
            ["not run", "mistake in the config (exit code 2)", "failed (exit code 1)"],
            2,
        ),
        (
            [0, 2, 0],
            True,
            ["0", "2"],
            ["done", "mistake in the config (exit code 2)", "done"],
            2,
        ),
        ([0, 130, 0], True, [], ["not run", "stopped (exit code 130)", "not run"], 130),
        ([0, 0, 0], False, ["0", "1", "2"], ["done", "done", "done"], 0),
    ],
)
def test_all_are_checked_before_any_runs(
    found: list[int],
    recover: bool,
    ran: list[str],
    words: list[str],
    result: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[str] = []

    def check(config: str) -> int:
        asked.append(f"check {config}")
        return found[int(config)]

    def run_one(config: str) -> int:
        asked.append(config)
        return 0

    assert run_series(["0", "1", "2"], run_one, recover=recover, check=check) == result
    checks = [f"check {index}" for index in range(3)]
    assert asked == [*checks[: 2 if 130 in found else 3], *ran]
    assert [
        line.split(": ", 1)[1] for line in capsys.readouterr().out.splitlines()
    ] == words
