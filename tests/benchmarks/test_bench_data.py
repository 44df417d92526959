from benchmarks import bench_data


def test_reports_rates_and_scans(report_of) -> None:
    report = report_of(bench_data.main, "--pictures", "1", "--counts", "3")
    assert report["bench"] == "data"
    assert report["images_per_cpu_s"]["decode, resize to 768, to tensor"] > 0
    assert report["scans"]["3"].keys() == {"first", "second"}
    assert 0 < report["scans"]["3"]["first"]["start_mb"] <= report["scans"]["3"]["first"]["peak_mb"]
