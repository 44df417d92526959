"""The bench of memory, the tables that come from it, and (slow) that a plan is right
about a whole job."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import bench_memory
from benchmarks.bench_memory import anonymous_bytes

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "memory.md"


def test_the_table_of_cards_is_the_one_in_the_documentation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench_memory.main(["--cards"])
    assert capsys.readouterr().out.strip() in DOCUMENT.read_text(encoding="utf-8")


def test_every_job_of_the_bench_stands_in_the_documentation() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in bench_memory.JOBS if f"| {name} |" not in text] == []


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux says what memory is"
)
def test_memory_that_is_taken_is_counted_and_that_of_a_process_that_ended_is_0() -> (
    None
):
    before = anonymous_bytes(os.getpid())
    taken = bytearray(os.urandom(1)) * 50_000_000
    assert 45e6 < anonymous_bytes(os.getpid()) - before < 60e6
    del taken
    assert anonymous_bytes(2**22 + 1) == 0


@pytest.mark.slow
def test_a_whole_job_takes_what_its_plan_says(report_of, tmp_path: Path) -> None:
    """The tolerance is for other builds of the libraries and other C libraries; on one
    machine it is 5 %."""
    [row] = report_of(
        bench_memory.main, "--folder", tmp_path, "--jobs", "lora fp32 on int8"
    )["jobs"].values()
    assert row["predicted"] == pytest.approx(row["measured"], rel=0.15)
