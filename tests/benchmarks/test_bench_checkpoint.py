from pathlib import Path

from benchmarks import bench_checkpoint


def test_reports_blocking_and_total_time(report_of, tmp_path: Path) -> None:
    report = report_of(bench_checkpoint.main, "--size", "XS", "--rounds", "1", "--folder", tmp_path)
    assert report["bench"] == "checkpoint"
    assert 0 < report["median_ms"]["blocking"] < report["median_ms"]["total"]
    # 28 tensors: float32 weights and two moments in the state, bfloat16 in the file.
    assert report["disk_mb"] >= report["weights"] * (3 * 4 + 2) / 1e6
    assert 0 < report["min_ms"]["disk alone"] <= report["median_ms"]["disk alone"]
    assert list(tmp_path.iterdir()) == []
