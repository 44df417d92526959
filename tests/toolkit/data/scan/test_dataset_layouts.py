"""Folders as the Hugging Face hub has them are read as `datasets` reads them:
tests/golden/dataset_layouts.json."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.dataset_layouts import LAYOUTS, PICTURES, colour, name_of, write
from tests.golden_tables import golden, table
from tests.toolkit.data.conftest import refusal
from toolkit.config.sections.dataset import DatasetConfig
from toolkit.data.scan.folder import scan_datasets

IMAGES = ("after", "target_image", "edited_image", "image")
CAPTIONS = ("text", "prompt", "instruction", "edit_prompt")
CONTROLS = ("before", "source_image", "input_image", "reference")
"""Columns of `datasets`, by what they are."""

REFUSED = {
    "lists of images": "metadata.jsonl: names several images in a row, in 'file_names'. Write a row for each "
    "image. (It is read because no image has a caption file; if it is not for them, move it away.)",
    "splits further down": ": holds no images (seen: 1 subfolder(s)). 'FOLDER/data/test', 'FOLDER/data/train' do: give "
    "FOLDER/data/train",
    "labels in splits": ": holds no images (seen: 2 subfolder(s)). 'FOLDER/test/cat', 'FOLDER/train/cat', "
    "'FOLDER/train/dog' do: give FOLDER/train/cat, FOLDER/train/dog",
    "a zip file": ": holds no images (seen: 1 .zip). Give 'folder_path: FOLDER/photos.zip'",
    "a row for each caption": "metadata.jsonl:2: 'a.png' has a caption in line 1. Remove one of them, or give "
    "'captions: lines', which draws one at each use",
    "captions in a list": "a.png: has a list of 2 captions. Give 'captions: lines', or one of them as text",
}
"""Layouts that are refused, and how."""

OTHERWISE = {
    "a column named image": [("picture a", "a cat", [])],
    "a picture without a row": [
        ("picture a", "a photo of a", []),
        ("picture b", "", []),
    ],
    "a table above its splits": [
        ("picture a", "for train/a", []),
        ("picture b", "for test/b", []),
    ],
    "splits in names of files": [],
    "paths in Parquet": [("picture a", "a photo of a", [])],
}
"""Layouts that are read otherwise than `datasets` reads them, and how: a picture stays
one beside a column named image, and without a row; a table is that of all splits; splits
in names of files are all trained; paths begin at the folder of a Parquet file, and not
at the working directory."""


@pytest.fixture(autouse=True)
def pyarrow(request: pytest.FixtureRequest) -> None:
    """Layouts with Parquet files are tested where it is installed."""
    name = (
        request.node.callspec.params.get("name", "")
        if hasattr(request.node, "callspec")
        else ""
    )
    if any(path.endswith(".parquet") for path in LAYOUTS.get(name, ())):
        pytest.importorskip("pyarrow")


def section(folder: Path | str, **keys: Any) -> DatasetConfig:
    return DatasetConfig.model_validate(
        {"folder_path": str(folder), "resolution": 64, **keys}
    )


def picture_of(path: str) -> str:
    with Image.open(path) as image:
        return f"picture {name_of(image)}"


def first(row: dict[str, Any], columns: tuple[str, ...]) -> Any:
    return next((row[column] for column in columns if column in row), None)


def rows_of(
    splits: dict[str, list[dict[str, Any]]],
) -> list[tuple[str, str, list[str]]]:
    """Picture, caption and control images of each row of all splits."""
    found = []
    for row in (row for rows in splits.values() for row in rows):
        controls = first(row, CONTROLS) or []
        found.append(
            (
                first(row, IMAGES),
                first(row, CAPTIONS) or "",
                controls if isinstance(controls, list) else [controls],
            )
        )
    return sorted(found)


def read(folder: Path | str, **keys: Any) -> list[tuple[str, str, list[str]]]:
    """The same of each sample of a plan."""
    # what it unpacked is there as long as it is
    scan = scan_datasets([section(folder, **keys)], None)
    return sorted(
        (
            picture_of(sample.image),
            sample.caption,
            [*map(picture_of, sample.control_images)],
        )
        for sample in scan.samples
    )


def test_every_layout_has_its_row_and_every_picture_its_colour() -> None:
    assert [case["layout"] for case in table("dataset_layouts")["cases"]] == [*LAYOUTS]
    assert len({colour(name) for name in PICTURES}) == len(PICTURES)
    assert {*REFUSED, *OTHERWISE} <= LAYOUTS.keys()


@pytest.mark.parametrize(
    "name", [name for name in LAYOUTS if name not in {*REFUSED, *OTHERWISE}]
)
def test_a_layout_is_read_as_datasets_reads_it(tmp_path: Path, name: str) -> None:
    write(LAYOUTS[name], tmp_path)
    ((splits),) = [case["splits"] for case in golden("dataset_layouts", layout=name)]
    if name == "splits in Parquet":
        # the others are left out, which test_parquet.py has
        splits = {"train": splits["train"]}
    assert read(tmp_path) == rows_of(splits)
    held_out = [path for path, _ in scan_datasets([section(tmp_path)], None).held_out]
    assert sorted(held_out) == sorted(
        f"{tmp_path}/{split}" for split in splits if split != "train"
    )


@pytest.mark.parametrize("name", REFUSED)
def test_a_layout_that_is_refused_says_what_to_do(tmp_path: Path, name: str) -> None:
    write(LAYOUTS[name], tmp_path)
    (mistake,) = refusal([section(tmp_path)], None).errors
    told = f"{mistake.place}: {mistake.message}".removeprefix(
        f"{tmp_path}"
    ).removeprefix("/")
    assert told.replace(str(tmp_path), "FOLDER") == REFUSED[name]


@pytest.mark.parametrize("name", ["splits further down", "labels in splits"])
def test_folders_further_down_are_read_as_the_remedy_says(
    tmp_path: Path, name: str
) -> None:
    write(LAYOUTS[name], tmp_path)
    (case,) = golden("dataset_layouts", layout=name)
    given = (
        REFUSED[name]
        .rpartition("give ")[2]
        .replace("FOLDER", str(tmp_path))
        .split(", ")
    )
    assert sorted(row for folder in given for row in read(folder)) == rows_of(
        {"train": case["splits"]["train"]}
    )


@pytest.mark.parametrize(
    ("files", "of_train"),
    [(("data-00000-of-00001.arrow",), ""), (("dataset_dict.json",), '["train"]')],
)
def test_what_save_to_disk_wrote_is_refused_with_the_line_that_makes_parquet_of_it(
    tmp_path: Path, files: tuple[str, ...], of_train: str
) -> None:
    (tmp_path / "saved").mkdir()
    for file in files:
        (tmp_path / "saved" / file).write_text("{}")
    refused = refusal([section(tmp_path / "saved")], None)
    place = f"{tmp_path}/saved"
    code = f'import datasets; datasets.load_from_disk("{place}"){of_train}.to_parquet("{place}.parquet")'
    told = refused.errors[0].message.partition("). ")[2]
    assert (
        told
        == f"It is what save_to_disk of 'datasets' wrote. Write it as Parquet: python -c '{code}'"
    )


@pytest.mark.parametrize("name", ["a row for each caption", "captions in a list"])
def test_several_captions_of_an_image_are_drawn_from(tmp_path: Path, name: str) -> None:
    write(LAYOUTS[name], tmp_path)
    (case,) = golden("dataset_layouts", layout=name)
    texts = [row["text"] for row in case["splits"]["train"]]
    (sample,) = scan_datasets([section(tmp_path, captions="lines")], None).samples
    assert [*sample.captions] == (texts[0] if isinstance(texts[0], list) else texts)


def test_the_remedy_of_a_table_above_its_splits_is_read(tmp_path: Path) -> None:
    write(LAYOUTS["a table above its splits"], tmp_path)
    scan = scan_datasets([section(tmp_path)], None)
    alone = f"'folder_path: {tmp_path}/train' and 'captions_file: {tmp_path}/metadata.jsonl'"
    what = "is trained on, and its name keeps it from the training"
    assert scan.held_out == (
        (f"{tmp_path}/test", f"{what}. For 'train' alone give {alone}"),
    )
    measured = f"(the validation takes 'validation: {{folder_path: {tmp_path}/test}}')"
    assert (
        f"warning: {tmp_path}: its subfolder 'test' {what}. For 'train' alone give {alone} {measured}"
        in scan.notes
    )
    assert read(tmp_path / "train", captions_file=str(tmp_path / "metadata.jsonl")) == [
        ("picture a", "for train/a", [])
    ]


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_layout_that_is_read_otherwise(tmp_path: Path, name: str) -> None:
    write(LAYOUTS[name], tmp_path)
    (case,) = golden("dataset_layouts", layout=name)
    theirs = rows_of(case.get("splits", {}))
    found = read(tmp_path)
    if name == "splits in names of files":
        assert {*case["splits"]} == {"train", "test"} and found == theirs
    else:
        assert found == OTHERWISE[name] != theirs
    if name == "paths in Parquet":  # there they begin at the working directory
        assert case["error"].startswith("FileNotFoundError")
    if name == "a picture without a row":
        told = f"{tmp_path}: 1 of 2 images have no line in {tmp_path}/metadata.jsonl: b.png"
        assert told in scan_datasets([section(tmp_path)], None).notes
