"""`bench_peers.py`: programs take turns, each in a separate process."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from benchmarks import bench_peers
from benchmarks.bench_peers import Program, markdown, start
from benchmarks.interop.environments import ENVIRONMENTS
from benchmarks.peers.turns import Turns
from benchmarks.synthetic import SIZES

QUICK = ("--rounds", "2", "--warm-up", "0", "--starts", "1")


@pytest.mark.slow
def test_ours_and_the_plain_loop_take_their_turns(
    report_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_peers, "SIZE", SIZES["XS"])
    report = report_of(bench_peers.main, "--programs", "ours", "plain", *QUICK)
    assert set(report["figures"]) == {"ours", "plain"}
    for figures in report["figures"].values():
        assert all(figure > 0 for figure in figures.values())


def test_a_program_that_ends_before_its_first_step_is_an_error(tmp_path: Path) -> None:
    script = tmp_path / "ends.py"
    script.write_text("raise SystemExit(3)", encoding="utf-8")
    program = Program("1.0", ENVIRONMENTS["product"], str(script))
    with pytest.raises(
        RuntimeError, match=r"ended with exit code 3; its errors are above\.$"
    ):
        start(program, tmp_path, tmp_path)


def test_each_line_is_one_turn_and_the_peak_follows_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("step\n"))
    channel = io.StringIO()
    turns = Turns(channel)
    assert turns.done(0.5)
    assert not turns.done(0.25)
    first, second, last = map(json.loads, channel.getvalue().splitlines())
    assert (first["loss"], second["loss"]) == (0.5, 0.25)
    assert last["peak"] >= last["held"] > 1e6


def test_the_table_has_a_row_for_each_program() -> None:
    text = markdown(
        {
            "plain": {
                "cpu": 5.117,
                "wall": 5.2,
                "peak": 2.59e9,
                "held": 2.4e9,
                "first_step": 10.7,
            }
        }
    )
    assert text.splitlines()[2:] == [
        "| plain: diffusers 0.42.1, peft 0.21.2 | 5.12 | 5.20 | 2.59 GB | 2.40 GB | 10.7 s |",
    ]
