import os
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


def test_the_disk_alone_is_as_many_bytes_flushed(tmp_path: Path, monkeypatch) -> None:
    flushed: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (flushed.append(os.fstat(handle).st_size), fsync(handle)))
    (tmp_path / "state").mkdir()
    for name, size in {"lora.safetensors": 20_000_000, "state/weights.safetensors": 17, "state/state.json": 5}.items():
        (tmp_path / name).write_bytes(bytes(size))
    assert bench_checkpoint.disk_alone(tmp_path) > 0
    assert flushed == [20_000_017]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora.safetensors", "state"]


def test_the_published_size_is_the_one_of_the_model() -> None:
    assert bench_checkpoint.SHAPES["published"] == (60, 3072)
