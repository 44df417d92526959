from benchmarks import bench_sample


def test_reports_a_sampling_step_against_a_training_forward(report_of) -> None:
    report = report_of(bench_sample.main, "--size", "XS", "--rounds", "1", "--steps", "2", "--noisy")
    assert report["bench"] == "sample"
    assert report["ratio"] > 0
    assert list(report["times"]) == ["sampling step", "training forward"]
