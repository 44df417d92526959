"""Parquet files where pyarrow is not installed; with it:
tests/toolkit/data/scan/test_parquet.py."""

from pathlib import Path

import pytest

from toolkit.config.sections.dataset import DatasetConfig
from toolkit.data.scan.folder import scan_datasets
from toolkit.errors import DataErrors
from toolkit.files import parquet


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that begins as a Parquet file."""
    monkeypatch.setattr(parquet, "find_spec", lambda name: None)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.parquet").write_bytes(b"PAR1" + bytes(99))
    return tmp_path / "set" / "train.parquet"


@pytest.mark.parametrize("key", ["folder_path", "captions_file"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_one_line_names_the_extra(file: Path, key: str, is_folder: bool) -> None:
    given = file.parent if is_folder and key == "folder_path" else file
    with pytest.raises(DataErrors) as caught:
        scan_datasets([DatasetConfig.model_validate({key: str(given)})], None)
    assert str(caught.value) == f"{given}: {parquet.MISSING}"


@pytest.mark.parametrize(
    ("begin", "suffix"),
    [
        (b"\xff\xd8\xff\xe0", ".jpg"),
        (b"\x89PNG\r\n", ".png"),
        (b"RIFF\0\0\0\0WEBPVP8 ", ".webp"),
        (b"\0\0\0\x20ftypavif", ".avif"),
        (b"\0\0\0\x20ftypheic", ".heic"),
        (b"II*\0", ".tif"),
        (b"\xff\x0a", ".jxl"),
        (b"?", ".png"),
    ],
)
def test_the_kind_of_a_picture_is_told_by_its_first_bytes(
    begin: bytes, suffix: str
) -> None:
    assert parquet.suffix_of(begin) == suffix
