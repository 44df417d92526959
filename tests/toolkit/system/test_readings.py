"""What the system counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from toolkit.system import readings
from toolkit.system.readings import Reading, read_machine


def test_counters_of_a_process_are_read(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    for name, text in {
        "stat": "7 (a (b) c) R 1 7 7 0 -1 4194304 120 0 42 0 1 2 3",
        "status": "Name:\tpython\nVmRSS:\t 9 kB\nVmSwap:\t  1000 kB\n",
        "schedstat": "114235 2500000000 2\n",
    }.items():
        (tmp_path / "self" / name).write_text(text)
    assert readings._of_process(tmp_path) == (42, 1_024_000, 2.5)
    assert readings._of_process(tmp_path / "elsewhere") == (0, 0, 0.0)


def test_the_gpu_is_asked_for_memory_and_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "_of_process", lambda: (1, 2, 3.0))
    monkeypatch.setattr(readings, "gpu_clock", lambda device: (1800, ("temperature",)))
    monkeypatch.setattr(readings, "_shares_gpu_memory", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 4))
    monkeypatch.setattr(
        torch.cuda, "memory_stats", lambda device: {"num_alloc_retries": 5}
    )
    assert read_machine(torch.device("cuda:0")) == Reading(
        1, 2, 0.0, 3.0, 5, 0.25, True, 1800, ("temperature",)
    )
    on_cpu = read_machine(torch.device("cpu"))
    assert on_cpu.cpu_s > 0 and replace(on_cpu, cpu_s=0.0) == Reading(1, 2, 0.0, 3.0)
