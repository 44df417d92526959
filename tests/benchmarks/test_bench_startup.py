import pytest

from benchmarks import bench_startup


@pytest.mark.slow
def test_reports_cold_and_warm_starts(report_of) -> None:
    report = report_of(bench_startup.main, "--runs", "1")
    assert report["bench"] == "startup"
    for start in ("cold", "warm"):
        assert 0 < report[start]["first_step_s"] < report[start]["exit_s"]
        assert 0 < report[start]["first_step_cpu_min_s"] < report[start]["exit_cpu_s"]
    assert "torch" in report["imports"]["packages"]


def test_a_training_job_has_a_name_of_its_own(tmp_path) -> None:
    bench = bench_startup.Bench.__new__(bench_startup.Bench)
    bench.folder, bench.asked, bench.count = tmp_path, bench_startup.arguments([]), 0
    cold, warm, other = (bench._training_job(cached)[1] for cached in (False, True, False))
    assert len({path.parent.name for path in (cold, warm, other)}) == 3
    assert cold.parents[1] == warm.parents[1] != other.parents[1]
