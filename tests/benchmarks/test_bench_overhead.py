from benchmarks import bench_overhead


def test_reports_the_parts_of_a_step(report_of) -> None:
    report = report_of(bench_overhead.main, "--steps", "3")
    assert report["bench"] == "overhead"
    assert {"model alone", "load a batch", "optimizer", "MetricsCallback"} <= report["parts_ms"].keys()
    assert report["step_ms"] > report["parts_ms"]["optimizer"] > 0
