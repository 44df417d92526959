"""The bench that counts kernels: what it counts, and that the step it counts is
whole."""

from __future__ import annotations

import pytest
import torch

from benchmarks import bench_kernels
from benchmarks.live_bytes import Kernels


def test_views_and_empty_memory_are_no_kernels() -> None:
    weight = torch.ones(4, 6)
    with Kernels() as kernels:
        weight.view(6, 4).t()[1:].unsqueeze(0).expand(2, -1, -1)
        torch.empty_like(weight).copy_(weight).add_(1)
        weight.to(torch.bfloat16) @ torch.ones(6, 2, dtype=torch.bfloat16)
    assert kernels.calls == {"copy_": 1, "add_": 1, "_to_copy": 1, "ones": 1, "mm": 1}


@pytest.mark.slow
def test_a_micro_step_launches_few_kernels_and_int4_adds_dequantizing(
    report_of, monkeypatch
) -> None:
    """Of a small model, whose blocks launch as many as the published one's. The goal is
    24,000; 31,433 were launched when each use cast its matrices and each norm was the
    formula. int4 adds four kernels for a layer: 14 forward, 14 again, 12 backward
    (nothing goes back through the modulation)."""
    monkeypatch.setattr(bench_kernels, "LEVELS", ("none", "full"))
    monkeypatch.setattr(
        bench_kernels, "DRAWN_SIZES", {"published": bench_kernels.BELOW}
    )
    rows = report_of(bench_kernels.main, "--rows", "bf16")["rows"]
    monkeypatch.setattr(bench_kernels, "LEVELS", ("full",))
    rows |= report_of(bench_kernels.main, "--rows", "int4")["rows"]
    plain, int4 = rows["bf16, full"], rows["int4, full"]
    assert plain["total"] <= 21_200
    # of the rotations: forward, again, backward
    assert plain["operations"]["_to_copy"] == 8 + 8 + 8
    assert plain["operations"]["_foreach_copy_"] == 3
    assert 60 * 40 * 4 * 0.97 < int4["total"] - plain["total"] <= 60 * 40 * 4
    assert int4["operations"]["__rshift__"] == 40
    assert rows["bf16, none"]["forward"] == plain["forward"] < 100
    assert plain["backward"] > rows["bf16, none"]["backward"] + 80
