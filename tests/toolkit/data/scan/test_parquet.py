"""Parquet files as tables and as datasets, as `datasets` 5.2.0 writes them."""

import io
import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from toolkit.config.sections.dataset import DatasetConfig
from toolkit.data.scan.directory import ScanCache
from toolkit.data.scan.folder import scan_datasets
from toolkit.data.streams.shards import expand_shards
from toolkit.errors import DataErrors, UserError
from toolkit.files import parquet, writing
from toolkit.files.archives import unpacked

PA = pytest.importorskip("pyarrow")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(PA.Table.from_pylist(rows), path, row_group_size=2)
    return path


def picture(colour: str, kind: str = "PNG", size: tuple[int, int] = (64, 48)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def of_hub(colour: str, kind: str = "PNG") -> dict[str, Any]:
    """As the feature Image is stored."""
    return {"bytes": picture(colour, kind), "path": None}


def section(path: Path | str, **keys: Any) -> DatasetConfig:
    return DatasetConfig.model_validate(
        {"folder_path": str(path), "resolution": 64, **keys}
    )


EDITS = [
    {
        "input_image": of_hub("red"),
        "edited_image": of_hub("blue", "JPEG"),
        "edit_prompt": f"make it blue {number}",
    }
    for number in range(3)
]


@pytest.mark.parametrize("given", [False, True])
def test_a_table_beside_the_images_is_read(tmp_path: Path, image, given: bool) -> None:
    for name in ("x.png", "y.png"):
        image(tmp_path / name)
    rows = [
        {"file_name": f"{name}.png", "text": f"a red {name}", "width": 64}
        for name in "xy"
    ]
    table = write(tmp_path / "metadata.parquet", rows)
    scan = scan_datasets(
        [section(tmp_path, **({"captions_file": str(table)} if given else {}))], None
    )
    assert [sample.caption for sample in scan.samples] == ["a red x", "a red y"]
    assert scan.notes[0] == f"{table}: columns that are not used: width"


def test_a_table_that_has_its_pictures_in_it_is_given_as_the_folder(
    tmp_path: Path, image
) -> None:
    rows = [{"image": of_hub("red"), "text": "a cat"}]
    file = write(tmp_path / "p.parquet", rows)
    image(tmp_path / "images" / "x.png")
    with pytest.raises(DataErrors, match="Give it as 'folder_path'"):
        scan_datasets([section(tmp_path / "images", captions_file=str(file))], None)
    with pytest.raises(UserError, match="Give it as 'folder_path'"):
        expand_shards([str(file)])
    assert [s.caption for s in scan_datasets([section(file)], None).samples] == [
        "a cat"
    ]


def test_names_that_to_parquet_leaves_instead_of_pictures_are_read(
    tmp_path: Path, image
) -> None:
    image(tmp_path / "x.png")
    table = write(
        tmp_path / "t.parquet",
        [{"image": {"bytes": None, "path": "x.png"}, "text": "a red x"}],
    )
    (sample,) = scan_datasets([section("", captions_file=str(table))], None).samples
    assert (sample.name, sample.caption) == ("x.png", "a red x")


@pytest.mark.parametrize(
    "where", ["train.parquet", "data/train-00000-of-00001.parquet"]
)
@pytest.mark.parametrize("key", ["folder_path", "captions_file"])
def test_pictures_in_the_rows_are_unpacked_and_read_by_their_columns(
    tmp_path: Path, where: str, key: str
) -> None:
    file = write(tmp_path / "set" / where, EDITS)
    given = (
        file if key == "captions_file" or where == "train.parquet" else tmp_path / "set"
    )
    dataset = DatasetConfig.model_validate({key: str(given), "resolution": 64})
    scan = scan_datasets(
        [dataset], None, scan_cache=ScanCache.beside(str(tmp_path / "runs"))
    )
    assert [
        (sample.folder, sample.name, sample.caption) for sample in scan.samples
    ] == [
        (f"{file}/edited_image", f"000000{number}.jpg", f"make it blue {number}")
        for number in range(3)
    ]
    with Image.open(scan.samples[1].control_images[0]) as control:
        assert control.getpixel((0, 0)) == (255, 0, 0)
    assert not [note for note in scan.notes if "warning" in note or "not used" in note]
    again = scan_datasets(
        [dataset], None, scan_cache=ScanCache.beside(str(tmp_path / "set" / "runs"))
    )
    assert again.samples[0].folder == scan.samples[0].folder
    assert scan_datasets([dataset], None).samples[0].folder == scan.samples[0].folder, (
        "with a cache in the folder"
    )
    (home,) = (tmp_path / "runs").glob("_cache/zips/*")
    assert sorted(path.name for path in home.iterdir()) == [
        "edited_image",
        "input_image",
        "metadata.jsonl",
    ]


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([], "has no rows. Take it out"),
        ([picture("red"), None], "has no picture in row 1. Remove the row"),
    ],
)
def test_a_file_without_a_picture_where_one_belongs_says_so(
    tmp_path: Path, pictures: list, message: str
) -> None:
    file = tmp_path / "a.parquet"
    columns = {"image": PA.array(pictures, PA.binary()), "text": ["a"] * len(pictures)}
    PA.parquet.write_table(PA.table(columns), file)
    with pytest.raises(OSError, match=re.escape(message)):
        unpacked(str(file), tmp_path / "home")


def test_a_picture_column_that_is_not_known_is_a_mistake_until_the_job_says_what_it_is(
    tmp_path: Path,
) -> None:
    rows = [
        {
            "image": of_hub("red"),
            "photo": of_hub("blue"),
            "digest": b"\1\2",
            "text": "a cat",
        }
    ]
    file = write(tmp_path / "p.parquet", rows)
    with pytest.raises(DataErrors) as caught:
        scan_datasets([section(file)], None)
    assert str(caught.value).startswith(
        f"{file}: its columns of files that are not used: photo. Fill in "
    )
    scan = scan_datasets(
        [section(file, columns={"control": "photo", "ignore": "digest"})], None
    )
    assert [len(sample.control_images) for sample in scan.samples] == [
        1
    ] and scan.notes == ()


def test_texts_of_which_none_is_the_caption_are_refused_as_in_a_csv(
    tmp_path: Path, image
) -> None:
    rows = [{"image": of_hub("red"), "en_caption": "a cat", "width": 64}]
    says = "has no column that is known as the caption, of en_caption. Fill in 'columns: {prompt: ...}'"
    with pytest.raises(DataErrors, match=re.escape(says)):
        scan_datasets([section(write(tmp_path / "p.parquet", rows))], None)
    image(tmp_path / "set" / "x.png")
    write(tmp_path / "set" / "t.parquet", [{"file_name": "x.png", "edit": "a cat"}])
    (tmp_path / "set" / "other.parquet").write_bytes(
        (tmp_path / "p.parquet").read_bytes()[:99]
    )
    with pytest.raises(DataErrors, match="as the caption, of edit"):
        scan_datasets([section(tmp_path / "set")], None)


def test_json_in_the_rows_is_read_as_in_a_caption_file(tmp_path: Path) -> None:
    rows = [{"jpg": of_hub("red"), "json": '{"prompt": "a cat", "n": 1}'}]
    file = write(tmp_path / "p.parquet", rows)
    columns = {"image": "jpg", "prompt": "json"}
    (sample,) = scan_datasets([section(file, columns=columns)], None).samples
    assert sample.caption == "a cat"


def test_a_folder_of_rows_without_pictures_says_what_they_are(tmp_path: Path) -> None:
    file = write(tmp_path / "t.parquet", [{"url": "https://x.org/a.png", "text": "a"}])
    remedy = f"Where they name files, give 'captions_file: {file}'"
    with pytest.raises(DataErrors, match=f"'t.parquet' has none in its rows. {remedy}"):
        scan_datasets([section(tmp_path)], None)


def test_text_that_is_no_utf_8_is_damage_and_no_traceback(tmp_path: Path) -> None:
    import pyarrow.parquet

    offsets = PA.py_buffer(b"".join(at.to_bytes(4, "little") for at in (0, 4)))
    half = PA.Array.from_buffers(
        PA.string(), 1, [None, offsets, PA.py_buffer(b"x\xed\xa0\xbd")]
    )
    table = PA.table({"file_name": ["a.png"], "text": half})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(
        DataErrors, match=r"is damaged behind row 0 .*codec can't decode"
    ):
        scan_datasets([section("", captions_file=str(tmp_path / "t.parquet"))], None)


def test_a_row_without_a_picture_at_the_beginning_does_not_make_it_a_table(
    tmp_path: Path,
) -> None:
    rows = [
        {"image": of_hub("red"), "control": None, "text": "a"},
        {"image": of_hub("red"), "control": of_hub("blue")},
    ]
    scan = scan_datasets([section(write(tmp_path / "p.parquet", rows))], "sks")
    assert [len(sample.control_images) for sample in scan.samples] == [0, 1]


def test_lists_of_pictures_are_several_control_images(tmp_path: Path) -> None:
    rows = [
        {
            "image": of_hub("red"),
            "control_images": [of_hub("blue"), of_hub("green")],
            "text": "a cat",
        }
    ]
    (sample,) = scan_datasets(
        [section(write(tmp_path / "p.parquet", rows))], None
    ).samples
    assert [Path(path).name for path in sample.control_images] == [
        "0000000_0.png",
        "0000000_1.png",
    ]


def test_files_for_validation_and_test_are_left_out_and_named(tmp_path: Path) -> None:
    for name in (
        "data/train-00000-of-00001.parquet",
        "data/test-00000-of-00001.parquet",
        "default/validation/0.parquet",
    ):
        write(tmp_path / name, EDITS[:1])
    scan = scan_datasets([section(tmp_path)], None)
    assert len(scan.samples) == 1
    held = f"{tmp_path}/data/test-00000-of-00001.parquet, {tmp_path}/default/validation/0.parquet"
    what = "2 files left out, as their names keep them from the training"
    assert f"warning: {tmp_path}: {what}: {held}" in scan.notes


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (
            [{"file_name": "a.png", "text": "x"}],
            "is a table without pictures. Give it as 'captions_file'",
        ),
        (
            [EDITS[0], {**EDITS[0], "edited_image": {"bytes": None, "path": "x"}}],
            "has no picture in 'edited_image' of row 1",
        ),
    ],
)
def test_a_file_that_is_not_a_dataset_says_why(
    tmp_path: Path, rows: list[dict[str, Any]], reason: str
) -> None:
    with pytest.raises(DataErrors, match=reason):
        scan_datasets([section(write(tmp_path / "p.parquet", rows))], None)


def test_a_picture_that_rows_share_is_unpacked_once(tmp_path: Path) -> None:
    """A table of edits has a source with many targets."""
    rows = [
        {**EDITS[number], "edited_image": of_hub(f"#{number}00")} for number in range(3)
    ]
    file = write(tmp_path / "p.parquet", rows)
    scan = scan_datasets([section(file)], None)
    assert [sample.caption for sample in scan.samples] == [
        f"make it blue {number}" for number in range(3)
    ]
    shared = {os.stat(sample.control_images[0]).st_ino for sample in scan.samples}
    own = {os.stat(sample.image).st_ino for sample in scan.samples}
    assert (len(shared), len(own)) == (1, 3)


@pytest.mark.parametrize("written", [0, 2])
def test_a_file_that_does_not_fit_unpacked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """By its own sizes, and while it is written: the disk may fill meanwhile."""
    file = write(tmp_path / "p.parquet", EDITS)
    free = [10**12] * written
    monkeypatch.setattr(
        writing, "free_space", lambda path: free.pop() if free else writing.MARGIN
    )
    with pytest.raises(OSError, match=r"needs .* unpacked, and .* are free in .*Make"):
        unpacked(str(file), tmp_path / "home")
    assert list((tmp_path / "home").iterdir()) == []


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metadata.parquet"
    path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(
        DataErrors,
        match=r"is what Git LFS has in the place .* Run 'git lfs pull' in its repository",
    ):
        scan_datasets([section(path)], None)


def test_metadata_beside_images_is_an_error_without_pyarrow_and_another_file_is_not(
    tmp_path: Path, image, monkeypatch: pytest.MonkeyPatch
) -> None:
    image(tmp_path / "x.png")
    table = write(
        tmp_path / "metadata.parquet", [{"file_name": "x.png", "text": "a red x"}]
    )
    monkeypatch.setattr(parquet, "find_spec", lambda name: None)
    with pytest.raises(DataErrors) as caught:
        scan_datasets([section(tmp_path)], "sks")
    assert str(caught.value).startswith(f"{table}: {parquet.MISSING}")
    table.rename(tmp_path / "embeddings.parquet")
    assert scan_datasets([section(tmp_path)], "sks").samples[0].caption == "sks"
