from pathlib import Path

from PIL import Image

from benchmarks import bench_data


def test_reports_rates_and_scans(report_of) -> None:
    report = report_of(bench_data.main, "--pictures", "1", "--counts", "3")
    assert report["bench"] == "data"
    assert report["images_per_cpu_s"]["decode, resize to 768, to tensor"] > 0
    assert report["scans"]["3"].keys() == {"first", "second"}
    assert 0 < report["scans"]["3"]["first"]["start_mb"] <= report["scans"]["3"]["first"]["peak_mb"]


def test_a_folder_to_scan_holds_as_many_images_as_asked_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bench_data, "LINKS_PER_FILE", 2)
    bench_data.link_images(tmp_path / "images", 5)
    images = sorted((tmp_path / "images").glob("*.jpg"))
    assert [path.name for path in images] == [f"{index:06d}.jpg" for index in range(5)]
    assert all(path.with_suffix(".txt").is_file() for path in images)
    assert len({path.stat().st_ino for path in images}) == 3


def test_the_photographs_have_the_measured_size(tmp_path: Path) -> None:
    for path in bench_data.write_photos(tmp_path / "photos", 2):
        with Image.open(path) as photo:
            assert photo.size == (1024, 1024)
