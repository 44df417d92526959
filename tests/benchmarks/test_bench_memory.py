"""The bench of memory, the tables that come from it, and (slow) that plans are right
about whole jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import bench_memory
from tests.conftest import FAST_BF16

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "memory.md"


def test_the_table_of_cards_is_the_one_in_the_documentation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench_memory.main(["--cards"])
    assert capsys.readouterr().out.strip() in DOCUMENT.read_text(encoding="utf-8")


def test_every_job_of_the_bench_stands_in_the_documentation() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in bench_memory.JOBS if f"| {name} |" not in text] == []


@pytest.mark.slow
def test_whole_jobs_take_what_their_plans_say(report_of, tmp_path: Path) -> None:
    """The tolerance is for other builds of the libraries and other C libraries; on one
    machine it is 5 %."""
    names = ["lora fp32 on int8", *(["lora bf16, batch 4"] if FAST_BF16 else [])]
    rows = report_of(bench_memory.main, "--folder", tmp_path, "--jobs", *names)["jobs"]
    assert list(rows) == names
    off = {name: row["predicted"] / row["measured"] - 1 for name, row in rows.items()}
    assert all(abs(difference) < 0.15 for difference in off.values()), off
    assert len({row["phase"] for row in rows.values()}) == len(names)
