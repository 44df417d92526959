"""The bench of main memory: what it reads of a process, and (slow) that waiting blocks
take none of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import bench_host_memory
from benchmarks.bench_host_memory import anonymous_bytes


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
def test_a_job_whose_blocks_wait_takes_no_second_copy(
    report_of, tmp_path: Path
) -> None:
    size = ("--gb", "0.35", "--qtype", "int8")
    report = report_of(bench_host_memory.main, *size, "--folder", tmp_path)
    for peak in report["peaks"].values():
        assert peak["measured"] <= peak["limit"]
