"""The pairs that the LoRAs of benchmarks/bench_drift.py are trained on."""

from __future__ import annotations

import pytest

from benchmarks import bench_drift
from toolkit.data.alignment import measure


def test_results_lie_to_the_right_of_their_references_by_the_shift() -> None:
    for shift in (0, 8):
        found = [measure(*reversed(bench_drift.images(pair, shift))) for pair in bench_drift.pairs(1, 4)]
        assert [each.shift for each in found] == [pytest.approx((shift, 0), abs=0.5)] * 4
