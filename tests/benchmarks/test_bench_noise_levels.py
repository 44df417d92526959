import pytest

from benchmarks import bench_noise_levels
from benchmarks.bench_noise_levels import OneLevel

QUICK = ("--size", "XS", "--rounds", "1", "--warm-up", "0", "--noisy", "--references", "3")


def test_levels_in_one_pass_need_less_memory_than_as_many_passes_at_once(report_of) -> None:
    row = report_of(bench_noise_levels.main, *QUICK)["rows"]["3"]
    assert 1 < row["memory_of_one_pass"] < 4 * 0.75
    assert row["tokens"] == (64 + 3 * 16 + 4 * 16) / (4 * (64 + 4 * 16))


def test_other_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OneLevel, "weighting", lambda self, t_B: 2 * t_B)
    with pytest.raises(SystemExit, match="gradients differ"):
        bench_noise_levels.main(QUICK)
