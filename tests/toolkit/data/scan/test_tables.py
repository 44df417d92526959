"""Tables as spreadsheets and other programs write them, given or found."""

import json
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from tests.toolkit.data.conftest import make_images, refusal
from toolkit.data.scan.columns import known_names
from toolkit.data.scan.folder import find_images, scan_datasets
from toolkit.data.scan.tables import Table, read_table
from toolkit.files.writing import TOOLKIT_ROOT

ROWS = 'file_name{0}caption\na.png{0}"one{0} two"\nb.png{0}grün\n'


@pytest.fixture
def data(tmp_path: Path, image) -> Path:
    make_images(tmp_path / name for name in ("a.png", "b.png"))
    return tmp_path


def captions(path: Path) -> dict[str, str]:
    table = read_table(str(path))
    assert table.mistakes == [] and table.unused == {}
    return {name: row.caption for name, row in table.rows.items()}


def test_a_csv_is_read_as_spreadsheets_save_it(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    encodings = ("utf-8", "utf-8-sig", "utf-16")
    for encoding, delimiter, ends in product(encodings, ",;\t|", ("\n", "\r\n")):
        text = ROWS.format(delimiter).replace("\n", ends)
        file.write_bytes(text.encode(encoding))
        expected = {"a.png": f"one{delimiter} two", "b.png": "grün"}
        assert captions(file) == expected, (encoding, delimiter, ends)


def test_the_first_line_of_a_spreadsheet_may_name_its_delimiter(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("sep=;\r\n" + ROWS.format(";") + ";;\n\n")
    assert captions(tmp_path / "t.csv")["a.png"] == "one; two"
    (tmp_path / "t.csv").write_text("sep=;\nfile_name;caption\na.png;one;two\n")
    assert [
        mistake.place for mistake in read_table(str(tmp_path / "t.csv")).mistakes
    ] == [f"{tmp_path}/t.csv:3"]


@pytest.mark.parametrize("name", ["t.tsv", "t.txt"])
def test_a_header_with_tabs_is_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(
        'file_name\ttext\tinput_image\na.png\t"one\ttwo"\tb.png\n'
    )
    table = read_table(str(tmp_path / name))
    assert table.rows["a.png"][:2] == ("one\ttwo", ("b.png",)) and not table.mistakes


NO_HEADER = (
    "1: its first line, '{}', names an image: there is no header. Put '{}' above it"
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.png,one\nb.png,two\n", NO_HEADER.format("a.png,one", "file_name,caption")),
        ("a.png,one,two\n", NO_HEADER.format("a.png,one,two", "file_name,...,...")),
        ("one;b.png\n", NO_HEADER.format("one;b.png", "caption;file_name")),
        (
            "Bild;Beschreibung\na.png;one\n",
            "1: 'Bild;Beschreibung' is not a header with 'file_name' and 'caption': it has no column that is known as "
            "the image; its columns are Bild, Beschreibung. Fill in 'columns: {image: ..., prompt: ...}'",
        ),
        (
            "file_name,caption\na.png,one, two\n",
            "2: has more values than the header: ' two'. Put a caption that has ',' in it into quotation marks",
        ),
        (
            b"PK\3\4\0\0a.png\xff",
            " is a spreadsheet or another zip file, not text. Export the table as CSV, in UTF-8",
        ),
        (
            "file_name;caption\na.png;ü".encode("cp1252"),
            " is not UTF-8 text: byte 0xfc at offset 24. Save it as UTF-8",
        ),
        (b"\xff\xfea.png\0\0\xd8", " is not UTF-16 text, as its first bytes say: "),
    ],
)
def test_a_csv_that_is_not_read_says_why_given_or_found(
    data: Path, dataset, text: str | bytes, reason: str
) -> None:
    (data / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    given, found = (
        str(refusal([dataset(data, **keys)], "sks"))
        for keys in ({"captions_file": str(data / "t.csv")}, {})
    )
    assert given.startswith(f"{data}/t.csv:{reason}") and found.startswith(given)
    if isinstance(text, str):
        assert given == f"{data}/t.csv:{reason}"
        assert found.startswith(f"{given}. (It is read because no image has")


def test_titles_that_are_given_are_a_header(data: Path, dataset) -> None:
    (data / "t.csv").write_text("Bild;Beschreibung;Nummer\na.png;one;1\nb.png;two;2\n")
    columns = {"image": "bild", "prompt": "Beschreibung", "ignore": "Nummer"}
    scan = scan_datasets([dataset(data, resolution=(64,), columns=columns)], None)
    assert [sample.caption for sample in scan.samples] == ["one", "two"]
    assert scan.notes == (
        f"{data}: no caption files: captions are read from {data}/t.csv",
    )


# ---------------------------------------------------------------- above the subfolders


@pytest.fixture
def above(tmp_path: Path, image) -> Path:
    """Two subfolders with an image of one name, and a table that names both; as the
    hub's guide has it."""
    make_images(tmp_path / "set" / folder / "x.png" for folder in ("images", "more"))
    rows = [
        {"file_name": f"{folder}/x.png", "text": f"of {folder}"}
        for folder in ("images", "more")
    ]
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "set"


def test_a_table_above_the_subfolders_that_it_names_is_found(
    above: Path, dataset
) -> None:
    section = dataset(above, resolution=(64,))
    scan = scan_datasets([section], None)
    assert [sample.caption for sample in scan.samples] == ["of images", "of more"]
    assert scan.notes == (
        f"{above}: no caption files: captions are read from {above}/metadata.jsonl",
    )
    assert [(image.caption, image.table) for image in find_images(section)[0]] == [
        (f"of {folder}", f"{above}/metadata.jsonl") for folder in ("images", "more")
    ]
    given = dataset(above, captions_file=str(above / "metadata.jsonl"))
    assert scan_datasets([given], None).samples == scan.samples


def test_it_is_for_those_without_captions_of_their_own(above: Path, dataset) -> None:
    (above / "more" / "x.txt").write_text("beside")
    scan = scan_datasets([dataset(above, resolution=(64,))], None)
    assert [sample.caption for sample in scan.samples] == ["of images", "beside"]
    (above / "images" / "t.tsv").write_text("x.png\tits own")
    scan = scan_datasets([dataset(above, resolution=(64,))], None)
    assert [sample.caption for sample in scan.samples] == ["its own", "beside"]
    reason = "captions of images that have caption files, or another table. Give one as 'captions_file'"
    assert scan.unused == ((f"{above}/metadata.jsonl", reason),)


def test_one_above_that_names_none_of_them_is_a_mistake(above: Path, dataset) -> None:
    (above / "metadata.jsonl").write_text(
        '{"file_name": "images/gone.png", "text": "lost"}\n'
    )
    (above / "settings.json").write_text('{"version": "1"}')
    refused = refusal([dataset(above)], None)
    what = "none of its 1 line names an image of the folder, and no image has a caption"
    assert str(refused).startswith(
        f"{above}/metadata.jsonl: {what}. It has 'images/gone.png', the folder 'images/x."
    )


# ---------------------------------------------------------------- the page


def test_the_page_has_every_name_that_is_known() -> None:
    page = (
        (TOOLKIT_ROOT / "docs" / "datasets.md")
        .read_text(encoding="utf-8")
        .partition("### Columns")[2]
    )
    names = (
        page.partition("## Regularisation images")[0]
        .replace(",", " ")
        .replace(";", " ")
    )
    listed = {
        known.name
        for known in known_names()
        if f"`{known.name}`" in names or f"`{known.name.removesuffix('s')}`" in names
    }
    assert listed == {known.name for known in known_names()}


# ---------------------------------------------------------------- what is given, and
# what is found


def test_a_table_names_images_further_down_than_its_subfolders(
    tmp_path: Path, image, dataset
) -> None:
    make_images(
        tmp_path / "set" / name
        for name in ("images/a/x.png", "images/b/x.png", "images/b/y.png")
    )
    rows = [
        {"file_name": f"images/{name}.png", "text": name} for name in ("a/x", "b/x")
    ]
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scan = scan_datasets([dataset(tmp_path / "set", resolution=(64,))], None)
    assert [sample.caption for sample in scan.samples] == ["a/x", "b/x"]
    assert scan.notes == (
        f"{tmp_path}/set: the images are those that {tmp_path}/set/metadata.jsonl names",
    )


def test_columns_that_are_given_without_a_table_are_told(data: Path, dataset) -> None:
    (data / "a.txt").write_text("a cat")
    scan = scan_datasets([dataset(data, columns={"control": "photo"})], "sks")
    what = "'columns' is given, and no table of captions is read. Give one as 'captions_file', or take 'columns' out"
    assert f"warning: {data}: {what}" in scan.notes


MISTAKES = {
    # what: (table, its text, keys of the dataset, what is said; ...: and more)
    "addresses": (
        "t.csv", "image,text\nhttps://x.org/a.png,one\nhttps://x.org/b.png,two\n", {"folder_path": ""},
        ": names 2 addresses, such as 'https:/x.org/a.png', and images are files. Download them, and write the names "
        "of the files",
    ),
    "a title of the caption that is not known": (
        "t.csv", "file_name,width,label text\na.png,64,a cat\n", {},
        "...: it has no column that is known as the caption, of label text. Fill in 'columns: {prompt: ...}', "
        "or give 'columns: {ignore: label text}' where none is meant",
    ),
    "a broken JSON": ("t.json", '{"a.png": "one",}', {}, ":1: is not valid JSON: ..."),
    "lines that differ in more than the caption": (
        "t.jsonl",
        '{"file_name": "a.png", "caption": "x", "weight": 1}\n{"file_name": "a.png", "caption": "y", "weight": 2}',
        {"captions": "lines", "columns": {"weight": "weight"}},
        ":2: 'a.png' has a caption in line 1. Remove one of them",
    ),
    "a column of lists": (
        "t.jsonl", '{"both": ["a.png", "b.png"], "text": "two"}', {"columns": {"image": "both"}},
        ":1: names 2 images in 'both'. Write a row for each image",
    ),
    "what programs write for none": (
        "t.csv", "file_name,text\na.png,NaN\nb.png,x\n", {},
        ":2: has the caption 'NaN', which programs write for none. Write one, or leave it empty",
    ),
    "quotation marks as in JSON": (
        "t.csv", 'file_name,text\na.png,"a sign \\"open\\" here"\nb.png,x\n', {},
        ":2: cannot be read as CSV: ...Fix the line",
    ),
    "a caption twice": (
        "t.jsonl", '{"file_name": "a.png", "text": "one"}\n{"file_name": "a.png", "text": "two"}\nb.png\n', {},
        ":2: 'a.png' has a caption in line 1...",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_in_a_table_is_one_line(data: Path, dataset, what: str) -> None:
    name, text, keys, said = MISTAKES[what]
    (data / name).write_text(text)
    given = {"folder_path": data, "captions_file": str(data / name), **keys}
    section = dataset(given.pop("folder_path"), **given)
    told = str(refusal([section], "sks").errors[0]).removeprefix(f"{data}/{name}")
    begin, dots, end = said.partition("...")
    assert told == said or (dots and told.startswith(begin) and told.endswith(end))


def test_a_found_table_is_as_strict_as_a_given_one(data: Path, dataset) -> None:
    (data / "t.json").write_text('{"a.png": "one",}')
    assert "move it away" in str(refusal([dataset(data)], "sks"))


NAMED = [
    {"file_name": "a.png", "text": "one, two"},
    {"file_name": "b.png", "text": "grün"},
]
READ_FORMS = {
    "stems": {"a": "one, two", "b": {"caption": "grün"}},
    "lines": "\n".join(map(json.dumps, NAMED)),
}  # fmt: skip


@pytest.mark.parametrize("form", READ_FORMS)
def test_forms_in_which_programs_write_captions_are_read(
    data: Path, dataset, form: str
) -> None:
    text = READ_FORMS[form]
    (data / "DATA.json").write_text(text if isinstance(text, str) else json.dumps(text))
    scan = scan_datasets([dataset(data, resolution=(64,))], None)
    assert [sample.caption for sample in scan.samples] == ["one, two", "grün"]


PACKED = {
    # text of a cell -> its captions, or a part of the answer
    '{"caption": "a cat", "tags": ["red"]}': "a cat",
    "{'text': 'a cat', 'score': None}": "a cat",
    '["a cat"]': "a cat",
    '["a cat", "a dog"]': "has a list of 2 captions. Give 'captions: lines'",
    "['a cat', 'a dog']": "has a list of 2 captions. Give 'captions: lines'",
    "('a cat',)": "a cat",
    "['a cat' 'a dog']": "is a JSON document, and is cut or damaged",
    "{'a cat', 'a dog'}": "is a JSON document, and is cut or damaged",
    '{caption: "a cat"}': "is a JSON document, and is cut or damaged",
    'json {"caption": "a cat"}': "is a JSON document, and is cut or damaged",
    "b'a cat'": "is a JSON document, and is cut or damaged",
    "array(['a cat'], dtype=object)": "is a JSON document, and is cut or damaged",
    '{"caption": "a man says "hi""}': "is a JSON document, and is cut or damaged",
    '[{"from": "gpt", "value": "a cat"}]': "and holds no 'caption' of text: the model is trained on sentences",
    "[trigger], {red|blue} cat": "sks, {red|blue} cat",
}  # fmt: skip


@pytest.mark.parametrize("text", PACKED)
@pytest.mark.parametrize("form", ["t.jsonl", "t.json", "t.csv"])
def test_a_text_that_is_json_or_a_list_is_read_as_in_a_caption_file_or_refused(
    data: Path, dataset, form: str, text: str
) -> None:
    """Given and found, so that no table is passed over for it."""
    quoted = text.replace('"', '""')
    (data / form).write_text(
        {
            "t.jsonl": "\n".join(json.dumps({"file_name": f"{n}.png", "text": text}) for n in "ab"),
            "t.json": json.dumps({f"{n}.png": text for n in "ab"}),
            "t.csv": f'file_name,text\na.png,"{quoted}"\nb.png,"{quoted}"\n',
        }[form]
    )  # fmt: skip
    for keys in ({}, {"captions_file": str(data / form)}):
        section = dataset(data, resolution=(64,), **keys)
        if "cat" in PACKED[text]:
            scan = scan_datasets([section], "sks")
            caption = PACKED[text] if "sks" in PACKED[text] else f"sks {PACKED[text]}"
            assert [sample.caption for sample in scan.samples] == [caption] * 2
        else:
            assert PACKED[text] in str(refusal([section], "sks"))


TALK = [{"from": "human", "value": "Describe it"}, {"from": "gpt", "value": "a cat"}]
REFUSED_FORMS = {
    # form: (name of the table, its rows or its text, what is said)
    "rows under a key": ("t.json", {"version": 1, "data": NAMED}, "is JSON without rows that are known"),
    "several lists": ("t.json", {"train": NAMED, "val": NAMED}, "is JSON without rows that are known"),
    "split of pandas": (
        "t.json", {"columns": ["file_name", "text"], "index": [0], "data": [["a.png", "x"], ["b.png", "y"]]},
        "is JSON without rows that are known",
    ),
    "titles that are not known": (
        "t.json", [{"img": f"{n}.png", "cap": "a cat"} for n in "ab"],
        "its columns are img, cap. Fill in 'columns: {image: ..., prompt: ...}'",
    ),
    "LLaVA": (
        "t.json", [{"image": f"{n}.png", "conversations": TALK} for n in "ab"],
        "of conversations, whose texts are packed in lists or objects. Write the caption as 'caption', or",
    ),
    "texts in JSON": (
        "t.jsonl", '{"image": "a.png", "meta": "{\\"w\\": \\"a cat\\"}"}', "of meta, whose texts are packed",
    ),
    "texts of another program": (
        "t.jsonl", '{"image": "a.png", "model": "one of ours", "hash": "a1"}',
        "Fill in 'columns: {prompt: ...}', or give 'columns: {ignore: [model, hash]}' where none is meant",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED_FORMS)
def test_a_table_with_texts_that_nobody_knows_is_refused(
    data: Path, dataset, form: str
) -> None:
    name, text, said = REFUSED_FORMS[form]
    (data / name).write_text(text if isinstance(text, str) else json.dumps(text))
    assert said in str(refusal([dataset(data)], None))
    given = dataset(data, captions_file=str(data / name))
    assert said in str(refusal([given], None))


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_texts_that_are_no_captions_are_left_out_as_the_message_says(
    data: Path, dataset, name: str
) -> None:
    rows = [{"file_name": f"{n}.png", "who": "anna", "said": "a word"} for n in "ab"]
    lines = map(json.dumps, rows)
    if name == "t.csv":
        lines = ("file_name,who,said", *(",".join(row.values()) for row in rows))
    (data / name).write_text("\n".join(lines))
    keys = {"image": ("file_name",), "ignore": ("who",)}
    says = "'columns: {image: file_name, ignore: [who, said]}' where none is meant"
    assert says in str(refusal([dataset(data, columns=keys)], None))
    keys["ignore"] = ("who", "said")
    scan = scan_datasets([dataset(data, resolution=(64,), columns=keys)], None)
    assert [sample.caption for sample in scan.samples] == ["", ""]


def test_a_table_without_texts_that_may_be_captions_is_no_mistake(
    data: Path, dataset
) -> None:
    row = {"score": 0.5, "date": "2024-01-02", "page": "https://x.org/1"}
    rows = ({"file_name": f"{name}.png", **row} for name in "ab")
    (data / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scan = scan_datasets([dataset(data, resolution=(64,))], "sks")
    unused = f"{data}/t.jsonl: columns that are not used: score, date, page"
    assert unused in scan.notes and len(scan.samples) == 2


OTHERS = {
    "boxes.json": '{"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}], "annotations": '
    '[{"image_id": 1, "bbox": [1, 2, 3, 4]}]}',
    "names.json": '["a.png", "b.png"]',
    "scores.json": '{"a.png": 0.5, "b.png": 0.25}',
    "workflow.json": '{"nodes": [{"inputs": "a.png"}], "links": [1]}',
    "coco.json": '{"images": [{"file_name": "a.png"}], "annotations": []}',
    "settings.json": '{"version": "1"}',
    "aspect_ratio_bucket_metadata.json": '{"/old/disk/gone.png": {"original_size": [64, 64]}}',
    "notes.csv": "what,when\nlight,now\n",
    "log.jsonl": '{"step": 1}\n',
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_programs_are_not_taken_for_tables(
    data: Path, dataset, name: str
) -> None:
    (data / name).write_text(OTHERS[name])
    scan = scan_datasets([dataset(data, resolution=(64,))], "sks")
    ignored, missing = scan.notes
    assert ignored == f"{data}: ignored, not an image: {name}"
    assert "2 of 2 images have no caption" in missing


# ---------------------------------------------------------------- how often a table is
# read


@pytest.mark.parametrize("given", [True, False])
def test_a_table_is_read_once(
    tmp_path: Path, image, dataset, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    read = Counter[str]()

    def counted(path: str, *rest: object) -> Table:
        read[Path(path).name] += 1
        return read_table(path, *rest)

    monkeypatch.setattr("toolkit.data.scan.found.read_table", counted)
    image(tmp_path / "sub" / "a.png")
    row = {"file_name": "sub/a.png", "caption": "a", "control": "gone.png"}
    for name in ("one.jsonl", "other.jsonl"):
        (tmp_path / name).write_text(
            json.dumps(
                row if name == "one.jsonl" else {"file_name": "sub/b.png", "text": "b"}
            )
        )
    keys = {"captions_file": str(tmp_path / "one.jsonl")} if given else {}
    assert [
        each.message for each in refusal([dataset(tmp_path, **keys)], None).errors
    ] == [f"is named in {tmp_path}/one.jsonl:1 as a control image and is not there"]
    assert read == ({"one.jsonl": 1} if given else {"one.jsonl": 1, "other.jsonl": 1})


def test_captions_of_several_rows_are_those_of_a_list(data: Path, dataset) -> None:
    rows = [{"file_name": "a.png", "caption": text} for text in ("x", "", "y")]
    rows += [{"file_name": "b.png", "caption": "z"}]
    (data / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scan = scan_datasets(
        [dataset(data, captions_file=str(data / "t.jsonl"), captions="lines")], None
    )
    assert [(sample.caption, sample.captions) for sample in scan.samples] == [
        ("x", ("x", "y")),
        ("z", ()),
    ]
