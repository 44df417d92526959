from benchmarks import bench_streams


def test_both_read_the_same_images(report_of) -> None:
    report = report_of(
        bench_streams.main, *["--images", "3", "--shards", "2", "--side", "64", "--rounds", "1", "--noisy"]
    )
    assert report["bench"] == "streams" and set(report["share"]) == {"of decoding", "of reading"}
    assert report["images_per_cpu_s"]["the stream"] > 0
