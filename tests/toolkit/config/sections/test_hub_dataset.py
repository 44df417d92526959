"""A dataset of the hub as a folder."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.small_hub import small_hub
from toolkit.config.sections.dataset import DatasetConfig
from toolkit.config.sections.hub_dataset import from_cache, hub_dataset


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset as huggingface_hub keeps it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    home = tmp_path / "hub" / "datasets--owner--name"
    for folder in ("refs", "blobs", "snapshots/abc/data"):
        (home / folder).mkdir(parents=True)
    (home / "refs" / "main").write_text("abc")
    return home / "snapshots" / "abc"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("owner/name", ("owner/name", "")),
        ("owner/name/data/train", ("owner/name", "data/train")),
        ("owner/name@v1.0", ("owner/name", "")),
        ("https://huggingface.co/datasets/owner/name", ("owner/name", "")),
        (
            "https://huggingface.co/datasets/owner/name/tree/main/data",
            ("owner/name", "data"),
        ),
        ("hf://datasets/owner/name/", ("owner/name", "")),
        ("https://huggingface.co/owner/name", ("", "")),
        ("datasets/name", ("", "")),
        ("photos/name", ("", "")),
        ("name", ("", "")),
        ("./owner/name", ("", "")),
        ("/owner/name", ("", "")),
        ("../owner", ("", "")),
        ("here/name", ("", "")),
    ],
)
def test_what_means_a_dataset_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, found: tuple[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert hub_dataset(path) == found


def test_a_dataset_in_the_cache_is_its_snapshot(snapshot: Path) -> None:
    for path in ("owner/name", "https://huggingface.co/datasets/owner/name"):
        assert DatasetConfig(folder_path=path).folder_path == str(snapshot)
    assert from_cache("owner/name/data") == f"{snapshot}/data"
    (snapshot.parents[1] / "refs" / "main").unlink()  # downloaded by its revision
    assert from_cache("owner/name") == str(snapshot)
    (snapshot.parent / "other").mkdir()
    assert from_cache("owner/name") == "owner/name"


def test_what_huggingface_hub_downloads_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import snapshot_download

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with small_hub(
        {"train/a.png": b"a", "train/b.png": b"b"}, "owner/name", "datasets"
    ) as hub:
        folder = snapshot_download(
            "owner/name",
            repo_type="dataset",
            endpoint=hub.url,
            cache_dir=tmp_path / "hub",
        )
    assert from_cache("owner/name") == folder
    assert sorted(
        path.name for path in Path(from_cache("owner/name/train")).iterdir()
    ) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (
            "someone/other",
            "Give a folder of images, or a zip file of one. If it is a dataset of the hub, run 'hf download "
            "--repo-type dataset someone/other' first.",
        ),
        (
            "https://huggingface.co/datasets/someone/other",
            "is an address, and its files are not here. Run 'hf download --repo-type dataset someone/other', and start",
        ),
        (
            "s3://bucket/photos",
            "is an address, and its files are not here. Download it, and give the folder; a 'url'",
        ),
    ],
)
def test_one_that_is_not_there_has_the_command(
    snapshot: Path, faults, path: str, told: str
) -> None:
    (fault,) = faults(f"datasets: [{{folder_path: '{path}'}}]")
    assert told in fault


def test_an_interrupted_download_is_told(snapshot: Path, faults) -> None:
    (snapshot.parents[1] / "blobs" / "123.incomplete").touch()
    (fault,) = faults("datasets: [{folder_path: owner/name}]")
    what = f"the download of 'owner/name' was interrupted ({snapshot.parents[1]})"
    assert (
        fault
        == f"datasets[0].folder_path: {what}. Run 'hf download --repo-type dataset owner/name' again."
    )
