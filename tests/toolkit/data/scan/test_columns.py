"""What the columns of a table are, by their names, their values and the job."""

import csv
import json
from ast import literal_eval
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.toolkit.data.conftest import make_images, refusal
from toolkit.config.sections.dataset import ColumnsConfig
from toolkit.data.scan.columns import Unfit, columns_of, known_names
from toolkit.data.scan.fingerprint import fingerprint
from toolkit.data.scan.folder import scan_datasets
from toolkit.data.scan.tables import read_table
from toolkit.errors import DataErrors

FILES = ("in/0.png", "in/1.png", "out/0.png", "out/1.png", "mask/0.png", "mask/1.png")


@pytest.fixture
def data(tmp_path: Path, image) -> Path:
    """Two images with a control image and a mask each."""
    for number, name in enumerate(FILES):
        image(tmp_path / name, colour=f"#0000{number}0")
    return tmp_path


@pytest.fixture
def dataset(dataset):
    """Sections at the size of the images, so that nothing is said of it."""
    return partial(dataset, resolution=(64,))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def both(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The row of each of two images: # is its number."""
    return [
        json.loads(json.dumps(row).replace("#", str(number))) for number in range(2)
    ]


def test_each_known_name_has_a_source_and_is_there_once() -> None:
    assert all(known.source for known in known_names())
    assert len({known[:2] for known in known_names()}) == len(known_names())
    assert all(
        known.name == known.name.lower() and not known.name.endswith("_file_name")
        for known in known_names()[1:]
    )


EDITS = {
    "diffusers": ("input_image", "edited_image", "edit_prompt"),
    "UltraEdit": ("source_image", "edited_image", "edit_prompt"),
    "MagicBrush": ("source_img", "target_img", "instruction"),
    "OmniEdit": ("src_img", "edited_img", "edited_prompt_list"),
    "HumanEdit": ("INPUT_IMG", "OUTPUT_IMG", "EDITING_INSTRUCTION"),
    "ControlNet": ("source", "target", "prompt"),
    "ImageFolder": ("before_file_name", "after_file_name", "text"),
    "ImageFolder, one": ("conditioning_image_file_name", "file_name", "text"),
    "ImageFolder, list": ("source_file_names", "image_file_name", "text"),
    "DiffSynth-Studio": ("kontext_images", "image", "prompt"),
}


@pytest.mark.parametrize("names", EDITS.values(), ids=EDITS)
def test_edit_tables_are_read_by_the_names_that_their_makers_give(
    data: Path, dataset, names: tuple[str, ...]
) -> None:
    control, edited, prompt = names
    before: Any = ["in/#.png"] if control.endswith("s") else "in/#.png"
    path = write(
        data / "t.jsonl",
        both({control: before, edited: "out/#.png", prompt: "make it red #"}),
    )
    scan = scan_datasets([dataset("", captions_file=path)], None)
    found = [
        (sample.name, sample.caption, sample.control_images) for sample in scan.samples
    ]
    assert found == [
        (f"{n}.png", f"make it red {n}", (f"{data}/in/{n}.png",)) for n in range(2)
    ]
    assert not [note for note in scan.notes if "columns" in note]


@pytest.mark.parametrize(
    "cell", ['["in/#.png", "out/#.png"]', "['in/#.png', 'out/#.png']", ' ["in/#.png"] ']
)
def test_a_list_of_control_images_in_a_cell_is_a_list(
    data: Path, dataset, cell: str
) -> None:
    """As JSON has it, and as Python prints it."""
    rows = [("out/#.png", "red", cell)]
    with (data / "t.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", "control"])
        writer.writerows([part.replace("#", "0") for part in row] for row in rows)
    (sample,) = scan_datasets(
        [dataset("", captions_file=str(data / "t.csv"))], None
    ).samples
    names = literal_eval(cell.strip().replace("#", "0"))
    assert sample.control_images == tuple(f"{data}/{name}" for name in names)


@pytest.mark.parametrize(
    "cell",
    [
        *("in/0.png;out/0.png", "in/0.png, out/0.png", "in/0.png and out/0.png"),
        *("[in/0.png | out/0.png]", "['in/0.png' 'out/0.png']", "in/0.png\nout/0.png"),
        *("{'0': 'in/0.png', '1': 'out/0.png'}", "[['in/0.png', 'out/0.png']]"),
    ],
)
def test_a_list_of_other_signs_in_a_cell_is_said_to_be_one(
    data: Path, dataset, cell: str
) -> None:
    """What is to be written is pasted into the cell as it is."""
    head, table = "file_name|text|control\n", data / "t.csv"
    table.write_text(f'{head}out/0.png|red|"{cell}"\n', encoding="utf-8")
    (refused,) = read_table(str(table)).mistakes
    what, written = refused.message.split(". Write ")
    assert what.startswith("has a list in one cell, ")
    table.write_text(f"{head}out/0.png|red|{written}\n", encoding="utf-8")
    (sample,) = scan_datasets([dataset("", captions_file=str(table))], None).samples
    assert sample.control_images == (f"{data}/in/0.png", f"{data}/out/0.png")


def test_a_list_of_no_texts_in_a_cell_is_a_name(data: Path, dataset) -> None:
    (data / "t.csv").write_text("file_name|text|control\nout/0.png|red|[1, 2]\n")
    with pytest.raises(DataErrors, match=r"\[1, 2\]: is named in .* is not there"):
        scan_datasets([dataset("", captions_file=str(data / "t.csv"))], None)


UNUSED = {
    # columns beside an image and its text, those of the second row -> what is not used
    "a name with other meanings": [
        ({name: "flickr"}, {}, name)
        for name in ("source", "target", "before", "input_image", "chosen", "win")
    ],
    "one that repeats the image, one that lacks a file": [
        ({"path": "./out/#.png", "shot": "in/#.png"}, {"shot": "in/gone.png"}, "path, shot")
    ],
    "numbers": [({"width": 64, "id of it": "x#"}, {}, "width, id of it")],
}  # fmt: skip


@pytest.mark.parametrize("what", UNUSED)
def test_columns_that_are_not_used_are_named_once_for_plan_and_lint(
    data: Path, dataset, what: str
) -> None:
    for columns, second, named in UNUSED[what]:
        rows = both({"file_name": "out/#.png", "text": "red", **columns})
        path = write(data / "t.jsonl", [rows[0], rows[1] | second])
        scan = scan_datasets([dataset("", captions_file=path)], None)
        assert [sample.control_images for sample in scan.samples] == [(), ()]
        unused = f"columns that are not used: {named}"
        assert scan.notes == (f"{path}: {unused}",)
        ignore = f"'columns: {{ignore: [{named}]}}'"
        if ", " in named:
            remedy = f"Say what they are with 'columns', or {ignore}"
            assert scan.unused == ((path, f"{unused}. {remedy}"),)
        quiet = dataset("", captions_file=path, columns={"ignore": named.split(", ")})
        assert scan_datasets([quiet], None).notes == ()


@pytest.mark.parametrize(
    "value", ["in/#.png", "in\\#.png", "{data}/in/#.png", ["in/#.png"]]
)
def test_a_column_of_files_is_a_mistake_until_the_job_says_what_it_is(
    data: Path, dataset, value: Any
) -> None:
    written = json.loads(json.dumps(value).replace("{data}", str(data)))
    path = write(
        data / "t.jsonl",
        both({"file_name": "out/#.png", "text": "red", "image1": written}),
    )
    refused = refusal([dataset("", captions_file=path)], None)
    what = f"{path}: its columns of files that are not used: image1"
    says = "Fill in 'columns: {image: ..., control: ...}' (or mask, or ignore)"
    ignore = "'columns: {ignore: image1}' where they are not meant"
    assert str(refused) == f"{what}. {says}, or give {ignore}"
    image_is_given = dataset("", captions_file=path, columns={"image": ("file_name",)})
    says = "Fill in 'columns: {image: file_name, control: ...}' (or mask, or ignore)"
    assert says in str(refusal([image_is_given], None))
    said = scan_datasets(
        [dataset("", captions_file=path, columns={"control": ("image1",)})], None
    )
    assert [
        [Path(each).name for each in sample.control_images] for sample in said.samples
    ] == [["0.png"], ["1.png"]]
    assert (
        scan_datasets(
            [dataset("", captions_file=path, columns={"ignore": ("image1",)})], None
        ).notes
        == ()
    )


def test_the_job_says_what_each_column_is(data: Path, dataset) -> None:
    rows = both(
        {
            "i": "out/#.png",
            "c": "in/#.png",
            "m": "mask/#.png",
            "w": "0.5",
            "p": "red #",
            "text": "no",
        }
    )
    rows[1]["w"] = None
    columns = {
        "image": "i",
        "control": "c",
        "mask": "m",
        "weight": "w",
        "prompt": "p",
        "ignore": "text",
    }
    section = dataset("", captions_file=write(data / "t.jsonl", rows), columns=columns)
    scan = scan_datasets([section], None)
    first, second = scan.samples
    assert [first.caption, second.caption] == ["red 0", "red 1"]
    assert first.mask and first.mask.file == f"{data}/mask/0.png"
    assert [sample.loss_weight for sample in scan.samples] == [0.5, 1.0]
    assert [
        note for note in scan.notes if "masks are dark throughout" not in note
    ] == []
    rows[0]["w"] = "1"
    plain = scan_datasets(
        [dataset("", captions_file=write(data / "t.jsonl", rows), columns=columns)],
        None,
    )
    before, after = fingerprint(scan.samples), fingerprint(plain.samples)
    assert [name for name in before if before[name] != after[name]] == [
        f"{data}/out/0.png"
    ]


def test_a_mask_of_the_table_goes_before_one_of_a_folder(
    data: Path, dataset, image
) -> None:
    image(data / "masks" / "0.png"), image(data / "masks" / "1.png")
    rows = [
        {"file_name": "0.png", "text": "", "m": "mask/0.png"},
        {"file_name": "1.png", "text": ""},
    ]
    section = dataset(
        data / "out",
        captions_file=write(data / "t.jsonl", rows),
        columns={"mask": "m"},
        mask_path=str(data / "masks"),
    )
    masks = [
        sample.mask.file
        for sample in scan_datasets([section], None).samples
        if sample.mask
    ]
    assert masks == [f"{data}/mask/0.png", f"{data}/masks/1.png"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"w": "much"}, "has the weight 'much'. Write a number from 0 to 1000000"),
        ({"w": -1}, "has the weight -1. Write a number from 0 to 1000000"),
        ({"w": float("nan")}, "has the weight nan. Write a number from 0 to 1000000"),
        (
            {"w": float("inf")},
            "has the weight inf. Write a number from 0 to 1000000",
        ),  # 1e400 in JSON
        (
            {"w": 10**400},
            f"has the weight 1{'0' * 400}. Write a number from 0 to 1000000",
        ),
    ],
)
def test_a_weight_that_is_none_is_named_with_its_line(
    data: Path, dataset, row: dict[str, Any], reason: str
) -> None:
    path = write(data / "t.jsonl", [{"file_name": "out/0.png", "text": "red", **row}])
    assert (
        str(refusal([dataset("", captions_file=path, columns={"weight": "w"})], None))
        == f"{path}:1: {reason}"
    )


def test_an_empty_weight_is_1_and_0_is_0(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,text,w\na.png,one,\nb.png,two,0\n")
    table = read_table(str(tmp_path / "t.csv"), given=ColumnsConfig(weight=("w",)))
    assert [row.weight for row in table.rows.values()] == [1.0, 0.0]


def test_a_given_column_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(Unfit) as caught:
        columns_of(
            [{"file_name": "a.png", "text": "x"}], ColumnsConfig(control=("inptu",))
        )
    what = "has no column 'inptu', which 'columns' gives as 'control'. Its columns are file_name, text"
    assert str(caught.value) == what


def test_a_table_without_a_known_image_says_how_to_name_it_in_the_job(
    data: Path, dataset
) -> None:
    row = {"prompt": "a cat", "good_jpg": "out/0.png", "bad_jpg": "out/1.png"}
    path = write(data / "t.jsonl", [row | {"by": "somebody with a long name"}])
    refused = refusal([dataset("", captions_file=path)], None)
    columns = "its columns are prompt, good_jpg, bad_jpg, by"
    remedy = "Fill in 'columns: {image: ..., control: ...}' (or mask, or ignore)"
    assert (
        str(refused)
        == f"{path}: has no column that is known as the image; {columns}. {remedy}"
    )
    section = dataset(
        "", captions_file=path, columns={"image": "good_jpg", "ignore": "bad_jpg"}
    )
    assert len(scan_datasets([section], None).samples) == 1


def test_control_images_beside_their_images_are_not_trained_themselves(
    tmp_path: Path, image, dataset
) -> None:
    """As `datasets` reads it: a row is a sample. Those of names that were known before
    stay as they are."""
    make_images(
        tmp_path / f"{name}.png"
        for name in ("x_before", "x_after", "y_before", "y_after", "z")
    )
    rows = [
        {
            "before_file_name": f"{n}_before.png",
            "after_file_name": f"{n}_after.png",
            "text": n,
        }
        for n in "xy"
    ]
    write(tmp_path / "metadata.jsonl", rows)
    scan = scan_datasets([dataset(tmp_path)], "sks")
    found = [
        (sample.name, [Path(path).name for path in sample.control_images])
        for sample in scan.samples
    ]
    assert found == [
        ("x_after.png", ["x_before.png"]),
        ("y_after.png", ["y_before.png"]),
        ("z.png", []),
    ]
    what = "2 images not trained, as control images or masks of others: x_before.png, y_before.png"
    assert f"{tmp_path}/metadata.jsonl: {what}" in scan.notes
    early = [
        {"conditioning_image": f"{n}_before.png", "image": f"{n}_after.png", "text": n}
        for n in "xy"
    ]
    write(tmp_path / "metadata.jsonl", early)
    scan = scan_datasets([dataset(tmp_path)], "sks")
    assert len(scan.samples) == 5, "as in runs that began before these were left out"
    what = "names 2 images as control images that are trained as images too: x_before"
    (told,) = [note for note in scan.notes if what in note]
    assert told.endswith("name that column: 'columns: {control: NAME}'")
    rows = [
        {"control_path": f"{n}_before.png", "image_path": f"{n}_after.png", "text": n}
        for n in "xy"
    ]
    write(tmp_path / "metadata.jsonl", rows)
    names = [
        sample.name for sample in scan_datasets([dataset(tmp_path)], "sks").samples
    ]
    assert names == [
        "x_after.png",
        "x_before.png",
        "y_after.png",
        "y_before.png",
        "z.png",
    ]


def test_subfolders_of_pairs_below_their_table_are_pairs(
    tmp_path: Path, image, dataset
) -> None:
    make_images(tmp_path / folder / "x.png" for folder in ("before", "after"))
    write(
        tmp_path / "metadata.jsonl",
        [{"source": "before/x.png", "target": "after/x.png", "prompt": "make it blue"}],
    )
    scan = scan_datasets([dataset(tmp_path)], None)
    assert [(sample.folder, sample.caption) for sample in scan.samples] == [
        (f"{tmp_path}/after", "make it blue")
    ]
    assert [info.folder for info in scan.folders] == [
        f"{tmp_path}/after"
    ] and scan.unpaired == ()


def test_of_several_names_of_the_image_those_count_whose_values_are_images() -> None:
    rows = [
        {
            "target": "train",
            "after": "the left one",
            "chosen": "a.png",
            "prompt": "a cat",
        }
    ]
    assert columns_of(rows, ColumnsConfig()).image == ("chosen",)
