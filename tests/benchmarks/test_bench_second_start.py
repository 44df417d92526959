"""The bench of a second start: its model is one, and (slow) its starts are counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import bench_second_start
from benchmarks.bench_second_start import Start, middle, shares_of, write_model
from toolkit.config.sections.model import ModelConfig
from toolkit.train.base_model import load_base_model


def test_its_model_has_the_asked_size_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_second_start, "HEADS", 2)
    size = write_model(tmp_path, 0.002)
    assert 0.5 < size / 2e6 < 2
    section = ModelConfig(name_or_path=str(tmp_path))
    module = load_base_model(
        section, torch.device("cpu"), torch.bfloat16
    ).network_module
    assert len(module.transformer_blocks) > 2


def test_the_shares_are_those_of_the_second_start() -> None:
    first, second, other = (
        Start(10, 8, 20, 16, 100),
        Start(2, 1, 12, 9, 30),
        Start(8, 5, 18, 15, 100),
    )
    assert middle([first, second, other]) == Start(8, 5, 18, 15, 100)
    found = shares_of(
        {
            "here": {"first": first, "second": second},
            "against": {"first": other, "second": other},
        },
        120,
    )
    assert found["bytes read, of the base"] == 0.25
    assert found["time until the steps, of the first start"] == 0.2
    assert found["time until the steps, of the other's second start"] == 0.25


@pytest.mark.slow
def test_a_second_start_reads_less(report_of, tmp_path: Path) -> None:
    """Of a file above 512 MiB, of which samples are hashed; a smaller one is read for
    its hash."""
    report = report_of(
        bench_second_start.main, "--gb", "0.6", "--only-ready", "--folder", tmp_path
    )
    first, second = (report["starts"]["here"][which] for which in ("first", "second"))
    assert second["read_bytes"] < first["read_bytes"] / 2
    assert second["ready_cpu_s"] > 0 and 0 < second["ready_s"] <= second["first_step_s"]
