import pytest

from benchmarks import bench_startup


@pytest.mark.slow
def test_reports_cold_and_warm_starts(report_of) -> None:
    report = report_of(
        bench_startup.main, "--runs", "1", "--resolution", "64", "--no-imports"
    )
    assert report["bench"] == "startup"
    for start in ("cold", "warm"):
        assert 0 < report[start]["first_step_s"] < report[start]["exit_s"]
        assert 0 < report[start]["first_step_cpu_min_s"] < report[start]["exit_cpu_s"]
