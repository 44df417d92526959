"""What the callbacks of every trainer are given."""

from __future__ import annotations

from types import SimpleNamespace

from toolkit.train.callbacks.standard import dataset_of


def test_the_dataset_of_an_image_is_the_nearest_folder_above_it_as_the_job_writes_it(
    monkeypatch, tmp_path
) -> None:
    monkeypatch.chdir(tmp_path)
    datasets = [
        SimpleNamespace(folder_path=name)
        for name in ("photos", "photos/close", "./photos/close", "")
    ]
    find = dataset_of(SimpleNamespace(datasets=datasets))
    images = (
        "photos/a.png",
        str(tmp_path / "photos/close/b/c.png"),
        "photos_b/a.png",
        "",
    )
    assert list(map(find, images)) == ["photos", "photos/close", "", ""]
