"""Captions of a whole dataset from one file."""

import json
from pathlib import Path

import pytest

from tests.toolkit.data.conftest import make_files, make_images, refusal
from toolkit.data.scan.folder import scan_datasets


@pytest.fixture
def data(tmp_path: Path, image) -> Path:
    """Two folders of two images, with captions beside them that nobody wants."""
    make_images(
        tmp_path / "data" / name
        for name in ("40_x/a.png", "40_x/ä.png", "b/a.png", "b/c.png")
    )
    (tmp_path / "data" / "40_x" / "a.txt").write_text("beside the image")
    return tmp_path / "data"


def test_each_image_has_the_caption_of_its_line(data: Path, dataset) -> None:
    table = data / "b" / "captions.tsv"
    table.write_text(
        "40_x/a.png\tone\nb/a.png\ttwo\n40_x/a\u0308.png\tthree\na.png\tnone\nb/x.png\tnone",
        "utf-8",
    )
    scan = scan_datasets(
        [dataset(data, captions_file=str(table), default_caption="default")], None
    )
    captions = {
        f"{Path(sample.image).parent.name}/{sample.name}": sample.caption
        for sample in scan.samples
    }
    assert captions == {
        "40_x/a.png": "one",
        "40_x/ä.png": "three",
        "b/a.png": "two",
        "b/c.png": "default",
    }
    assert [folder.missing_captions for folder in scan.folders] == [0, 1]
    assert [note for note in scan.notes if not note.startswith("warning:")] == [
        f"{data}/40_x: ignored, not a caption, because captions_file is given: a.txt",
        f"{data}: 1 of 4 images have no line in {table}: b/c.png",
        f"{table}: 2 of 5 lines name no image of {data}: a.png, b/x.png",
    ]


def test_lines_that_cannot_be_used_come_with_all_other_mistakes_and_once(
    data: Path, dataset, tmp_path: Path
) -> None:
    table = tmp_path / "captions.tsv"
    table.write_text("a.png one\na.png\ttwo\na.png\tthree")
    both = [dataset(data / name, captions_file=str(table)) for name in ("40_x", "b")]
    refused = refusal(
        [
            *both,
            dataset(data / "b", captions_file="none.tsv"),
            dataset(tmp_path / "none"),
        ],
        None,
    )
    places = [mistake.place for mistake in refused.errors]
    assert places == [f"{table}:1", f"{table}:3", "none.tsv", str(tmp_path / "none")]


def test_a_prefix_stands_behind_the_trigger_word_and_before_every_caption(
    data: Path, dataset, image
) -> None:
    section = dataset(
        data / "40_x", caption_prefix="[trigger] art", shuffle_tokens=True
    )
    plain = dataset(data / "40_x", caption_prefix="drawn", is_reg=True)
    of_trigger, of_none = (
        scan_datasets([section], trigger) for trigger in ("sks", None)
    )
    assert [sample.caption for sample in of_trigger.samples] == [
        "sks art. beside the image",
        "sks art",
    ]
    assert [sample.caption for sample in of_none.samples] == [
        "art. beside the image",
        "art",
    ]
    assert {sample.rules.prefix for sample in of_trigger.samples} == {"sks art"}
    assert any("captions with '[trigger]'" in note for note in of_none.notes)
    assert not any("empty prompt" in note for note in of_none.notes)
    for reg, first in (
        (False, "sks drawn. beside the image"),
        (True, "drawn. beside the image"),
    ):
        plain.is_reg = reg
        assert scan_datasets([plain], "sks").samples[0].caption == first


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.tsv", "a.png\tone\nc.png\ttwo, three"),
        ("captions.csv", 'File_Name,width,text\na.png,1,one\nc.png,1,"two, three"'),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "one"}\n\n{"image": "./c.png", "caption": "two, three"}',
        ),
        (
            "metadata.json",
            '[{"image": "a.png", "prompt": "one"}, {"image": "c.png", "prompt": "two, three"}]',
        ),
        (
            "meta_cap.json",
            '{"a": {"caption": "one"}, "c": {"tags": "three", "caption": "two"}}',
        ),
        ("dataset.json", '{"a.png": "one", "c.png": "two, three"}'),
    ],
)
def test_the_only_table_of_a_folder_without_caption_files_is_read_and_named(
    data: Path, dataset, name: str, text: str
) -> None:
    table = data / "b" / name
    table.write_text(text)
    scan = scan_datasets([dataset(data / "b", resolution=(64,))], "sks")
    assert [sample.caption for sample in scan.samples] == ["sks one", "sks two, three"]
    read = f"{data}/b: no caption files: captions are read from {table}"
    assert scan.notes == (
        (f"{table}: columns that are not used: width",) if "width" in text else ()
    ) + (read,)
    # as one of several subfolders
    whole = scan_datasets([dataset(data, resolution=(64,))], "sks")
    assert [sample.caption for sample in whole.samples][2:] == [
        "sks one",
        "sks two, three",
    ]
    given = scan_datasets([dataset(data / "b", captions_file=str(table))], "sks")
    assert given.samples == scan_datasets([dataset(data / "b")], "sks").samples
    (data / "b" / "other.tsv").write_text("a.png\tanother")
    two = scan_datasets([dataset(data / "b", resolution=(64,))], "sks")
    assert [sample.caption for sample in two.samples] == ["sks", "sks"]
    both = ", ".join(sorted((name, "other.tsv")))
    assert two.notes[0] == (
        f"warning: {data}/b: 2 files not used, captions of images that have caption files, or another table: {both}. "
        "Give one as 'captions_file'"
    )
    (data / "b" / "a.txt").write_text("beside the image")
    beside = scan_datasets([dataset(data / "b", resolution=(64,))], "sks")
    assert (
        beside.samples[0].caption == "sks beside the image"
        and beside.notes[0] == two.notes[0]
    )


PATHS = {
    "absolute": "{data}/b/{name}",
    "from the folder of the table": "data/b/{name}",
    "upwards": "tables/../data/b/{name}",
    "on Windows": "data\\b\\{name}",
    "on Windows, from the folder": ".\\{name}",
    "from the working directory": "somewhere/data/b/{name}",
}
"""How other programs write the paths of images that lie in `data/b`."""


@pytest.mark.parametrize("written", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("name", ["x.csv", "x.json", "data/b/x.csv"])
def test_lines_that_name_their_images_by_another_path_are_theirs(
    data: Path, dataset, monkeypatch: pytest.MonkeyPatch, written: str, name: str
) -> None:
    monkeypatch.chdir(data.parent)
    (data.parent / "somewhere").symlink_to(data.parent)
    table = data.parent / name
    rows = [
        (written.format(data=data, name=image), text)
        for image, text in (("a.png", "one"), ("c.png", "two"))
    ]
    lines = "".join(f"{path},{text}\n" for path, text in rows)
    table.write_text(
        json.dumps(dict(rows)) if name.endswith("json") else f"file_name,text\n{lines}"
    )
    for section in (
        dataset(data / "b", captions_file=str(table)),
        dataset("data/b", captions_file=name),
    ):
        scan = scan_datasets([section], None)
        assert [sample.caption for sample in scan.samples] == ["one", "two"]
        assert not [
            note for note in scan.notes if "name no image" in note or "no line" in note
        ]


@pytest.mark.parametrize(
    "rows",
    [
        {"train/a.png": "one", "val/a.png": "two"},  # two folders: which is meant?
        {"40_x/a.png": "one"},  # which is there, elsewhere
        {"a.png": "one", "train/a.png": "two"},
    ],
)
def test_a_line_is_no_image_s_where_there_is_doubt(
    data: Path, dataset, rows: dict[str, str]
) -> None:
    (data / "x.json").write_text(json.dumps({**rows, "c.png": "three"}))
    scan = scan_datasets(
        [dataset(data / "b", captions_file=str(data / "x.json"))], None
    )
    assert [sample.caption for sample in scan.samples] == [
        rows.get("a.png", ""),
        "three",
    ]
    lines = [name for name in rows if name != "a.png"]
    assert any(
        note.endswith(f"name no image of {data}/b: {', '.join(lines)}")
        for note in scan.notes
    )


def test_a_table_of_which_no_line_is_an_image_s_is_a_mistake(
    data: Path, dataset
) -> None:
    (data / "x.tsv").write_text("q/x.png\tone\nq/y.png\ttwo")
    (mistake,) = refusal(
        [dataset(data / "b", captions_file=str(data / "x.tsv"))], None
    ).errors
    assert mistake.place == str(data / "x.tsv")
    reason = f"none of its 2 lines names an image of {data}/b. It has 'q/x.png', the folder 'a.png'"
    assert mistake.message == f"{reason}: write paths from that folder"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.jsonl", "\n"),
        ("x.csv", "file_name,text\n"),
        ("x.json", "{}"),
        ("x.json", "[]"),
        ("x.tsv", ""),
    ],
)
def test_a_table_without_a_line_is_a_mistake(
    data: Path, dataset, name: str, text: str
) -> None:
    (data / name).write_text(text)
    for folder in ("", data / "b"):
        refused = refusal([dataset(folder, captions_file=str(data / name))], None)
        remedy = "Write one for each image, or take 'captions_file' out"
        assert str(refused) == f"{data / name}: has no line. {remedy}"


def test_a_table_beside_images_without_captions_that_names_none_of_them_is_a_mistake(
    data: Path, dataset
) -> None:
    (data / "b" / "metadata.jsonl").write_text(
        '{"file_name": "other.png", "text": "one"}'
    )
    (data / "b" / "settings.json").write_text('{"version": "1"}')
    for caption in data.glob("b/*.txt"):
        caption.unlink()
    refused = refusal([dataset(data / "b")], "sks")
    told = "none of its 1 line names an image of the folder, and no image has a caption. It has 'other.png'"
    assert str(refused).startswith(f"{data}/b/metadata.jsonl: {told}")
    (data / "b" / "a.txt").write_text("its own")
    assert scan_datasets([dataset(data / "b")], "sks").unused == ()


def test_tags_of_kohya_s_metadata_are_the_end_of_the_caption(
    data: Path, dataset
) -> None:
    rows = {
        "a": {"caption": "a cat sits", "tags": "indoors, table"},
        "c": {"tags": "outdoors"},
    }
    lists = {
        "a": {"caption": "a cat sits", "tags": ["indoors", "table"]},
        "c": {"caption": None, "tags": ["outdoors"]},
    }
    for table in (rows, lists):
        (data / "x.json").write_text(json.dumps(table))
        scan = scan_datasets(
            [dataset(data / "b", captions_file=str(data / "x.json"))], None
        )
        assert [sample.caption for sample in scan.samples] == [
            "a cat sits, indoors, table",
            "outdoors",
        ]


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("x.csv", "a.png,one", 1),
        ("x.csv", 'file,text\na.png,one\n,"two"', 3),
        ("x.jsonl", '{"file_name": "a.png", "text": "one"}\n[1]', 2),
        ("x.jsonl", "[" * 100_000, 1),
        ("x.jsonl", '{"file_name": "a.png", "text": "one"}\n{"text": "two", }', 2),
        ("x.jsonl", '{"file_name": "a.png", "text": 3}', 1),
        ("x.jsonl", '{"file_name": "a.png", "text": ["one", 2]}', 1),
        ("x.json", '[{"file_name": "a.png", "text": "one"},\n\n 3]', 2),
        ("x.json", '{"a.png": "one",\n}', 2),
    ],
)
def test_a_line_of_a_table_that_cannot_be_used_is_named(
    data: Path, dataset, name: str, text: str, line: int
) -> None:
    (data / name).write_text(text)
    refused = refusal([dataset(data / "b", captions_file=str(data / name))], None)
    assert [mistake.place for mistake in refused.errors] == [f"{data / name}:{line}"]
    assert ("is not valid JSON: " in str(refused)) == (
        name != "x.csv" and text[-2:] in ("[[", ", }", " }", "\n}")
    )


# ---------------------------------------------------------------- control images, and
# images by their lines


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "x.csv",
            "file_name,caption,control_path_0,control_path_1\na.png,,ref\\b.png,.\\ref\\c.png",
        ),
        (
            "x.jsonl",
            '{"image_path": "a.png", "caption": "", "control_path_10": "ref/c.png", "control_path_2": "ref/b.png"}',
        ),
        (
            "x.json",
            '[{"image": "a.png", "prompt": "", "edit_image": ["ref/b.png", "ref/c.png"]}]',
        ),
        (
            "x.csv",
            "file_name,caption,control_path_0,control_path_1\na.png,,ref/b.png,ref/c.png",
        ),
        (
            "x.jsonl",
            '{"image_path": "a.png", "text": "", "control_path": "{folder}/ref/b.png", "control_path_1": "ref/c.png"}',
        ),
    ],
)
def test_a_line_names_the_control_images_of_its_image(
    tmp_path: Path, image, dataset, name: str, text: str
) -> None:
    make_images(
        tmp_path / file
        for file in ("a.png", "b.png", "ref/b.png", "ref/c.png", "other/b.png")
    )
    (tmp_path / name).write_text(text.replace("{folder}", str(tmp_path)))
    section = dataset(
        tmp_path,
        captions_file=str(tmp_path / name),
        control_path=(str(tmp_path / "other"),),
    )
    found = {
        sample.name: sample.control_images
        for sample in scan_datasets([section], None).samples
    }
    ref = tmp_path / "ref"
    assert found == {
        "a.png": (f"{ref}/b.png", f"{ref}/c.png"),
        "b.png": (f"{tmp_path}/other/b.png",),
    }


def test_control_images_that_are_named_and_not_there(
    tmp_path: Path, image, dataset
) -> None:
    image(tmp_path / "a.png")
    table = tmp_path / "x.jsonl"
    table.write_text(
        '{"image": "a.png", "caption": "", "control": "b.png", "references": ["gone/c.png"]}'
    )
    assert [
        mistake.place
        for mistake in refusal(
            [dataset(tmp_path, captions_file=str(table))], None
        ).errors
    ] == [
        f"{tmp_path}/b.png",
        f"{tmp_path}/gone",
    ]


def test_without_a_folder_the_images_are_those_of_the_lines(
    tmp_path: Path, image, dataset
) -> None:
    make_images(
        tmp_path / file for file in ("t/a.png", "t/b.png", "3_x/a.png", "3_x/c.png")
    )
    (tmp_path / "t" / "b.txt").write_text("nobody asked")
    table = tmp_path / "t" / "x.jsonl"
    lines = ["a.png", "../3_x/c.png", str(tmp_path / "3_x" / "a.png")]
    table.write_text(
        "\n".join(
            json.dumps({"image_path": line, "caption": line[-5:]}) for line in lines
        )
    )
    scan = scan_datasets(
        [dataset("", captions_file=str(table), resolution=(64,))], None
    )
    found = [(Path(s.image).resolve(), s.caption, s.repeats) for s in scan.samples]
    x = tmp_path / "3_x"
    assert found == [
        (tmp_path / "t" / "a.png", "a.png", 1),
        (x / "a.png", "a.png", 3),
        (x / "c.png", "c.png", 3),
    ]
    assert scan.notes == ()
    table.write_text(
        '{"image": "gone.png", "caption": ""}\n{"image": "no/a.png", "caption": ""}'
    )
    assert [
        mistake.place
        for mistake in refusal([dataset("", captions_file=str(table))], None).errors
    ] == [
        f"{tmp_path}/t/gone.png",
        f"{tmp_path}/t/no",
    ]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("t.csv", "{0}/a.png,one"),
        ("t.jsonl", '{{"file_name": "{0}/a.png", "text": "one"}}'),
    ],
)
def test_folders_of_another_machine_in_a_table_are_told(
    data: Path, dataset, name: str, row: str
) -> None:
    table = data / "b" / name
    table.write_text(
        "file_name,text\n" * name.endswith("csv") + row.format("/old/disk")
    )
    assert str(refusal([dataset("", captions_file=str(table))], None)) == (
        "/old/disk: cannot be read as a folder: No such file or directory"
    )
    assert str(refusal([dataset(data / "b", captions_file=str(table))], None)) == (
        f"{table}: none of its 1 line names an image of {data}/b. It has '/old/disk/a.png', the folder 'a.png': "
        "write paths from that folder"
    )


def test_file_names_are_the_captions_of_all_images(dataset, tmp_path: Path) -> None:
    folder = tmp_path / "named"
    texts = {"b.txt": "written", "t.tsv": "a_red_cat (2).png\tin a table"}
    images = ("a_red_cat.png", "a_red_cat (2).png", "b.png", "sub/a_dog_end.png")
    make_files(folder, texts | dict.fromkeys(images, ""))
    for keys, captions in (
        ({"captions": "names"}, ["a red cat", "a red cat", "b"]),
        (
            {"captions": "names", "folder_path": "sub", "image_suffix": "_end"},
            ["a dog"],
        ),
    ):
        given = folder / keys.pop("folder_path", "")
        scan = scan_datasets([dataset(given, resolution=(64,), **keys)], None)
        assert [sample.caption for sample in scan.samples] == captions
        assert scan.folders[0].missing_captions == 0
        told = f"{given}: ignored, not a caption, because captions is names: b.txt"
        assert (told in scan.notes) == (captions[-1] == "b")
