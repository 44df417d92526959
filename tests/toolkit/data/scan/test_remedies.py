"""What the scan tells to write is written, as it stands, and the next answer is the
training that is meant: no remedy leads to another error."""

import json
import re
import shlex
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.toolkit.data.conftest import make_image
from toolkit.config.sections.dataset import DatasetConfig
from toolkit.data.scan.folder import scan_datasets
from toolkit.errors import DataErrors

TEXTS = ("a red house", "a blue boat")
IMAGES = ("0.png", "1.png")


def each(name: str, text: Any) -> dict[str, str]:
    """A file for each image. # in the name is its number; text: its caption, or what is
    made of it."""
    made = (text(caption) if callable(text) else text for caption in TEXTS)
    return {name.replace("#", str(at)): content for at, content in enumerate(made)}


def table(**columns: Any) -> str:
    """JSON lines of both images: # is the number, CAPTION the caption."""
    lines = json.dumps({"file_name": "#.png", **columns})
    rows = (lines.replace("#", str(at)).replace("CAPTION", TEXTS[at]) for at in (0, 1))
    return "\n".join(rows)


BOORU = {
    "id": 3,
    "tag_string": "CAPTION",
    "tag_string_character": "pipo",
    "rating": "g",
}
IN_JSON: dict[str, Any] = {"nl": "CAPTION", "tags": {"general": ["sky"]}, "n": 3}
CSV = "image,text\n" + "".join(
    f"{at}.png,{text}, smiling\n" for at, text in enumerate(TEXTS)
)
QUOTED = "image,text\n" + "".join(
    f'{at}.png,"{text}, smiling"\n' for at, text in enumerate(TEXTS)
)


def packed(document: Any) -> Any:
    return lambda caption: json.dumps(document).replace("CAPTION", caption)


CASES: dict[str, tuple[Mapping[str, Any], dict[str, Any], str, dict[str, Any]]] = {
    # files beside the images, keys of the dataset, a part of the answer, what the user fills in
    "JSON with another key": (
        each("#.json", packed(IN_JSON)), {}, "[.txt, .caption, .json]'. Give 'columns: {prompt: nl}'", {}
    ),
    "JSON of a downloader": (
        each("#.png.json", packed(BOORU)), {},
        "Give 'caption_ext: [.txt, .caption, .json]'. Fill in 'columns: {prompt: ...}' with one of tag_string, ",
        {"prompt": "tag_string"},
    ),
    "the same, asked for": (
        each("#.json", packed(BOORU)), {"caption_ext": ".json"}, "Fill in ", {"prompt": "tag_string"}
    ),
    "JSON with a caption": (each("#.json", packed({"caption": "CAPTION"})), {}, "Give 'caption_ext: [", {}),
    "another ending": (each("#.txt", str), {"caption_ext": ".text"}, "Give 'caption_ext: [.text, .txt]'", {}),
    "two texts": (each("#.txt", "tags") | each("#.caption", str), {}, "For these give 'caption_ext: .caption'", {}),
    "captions in a folder": (each("captions/#.txt", str), {}, "Copy them beside the images ('cp ", {}),
    "captions in any folder below": (each("sub/#.caption", str), {}, "Copy them beside the images ('cp ", {}),
    "captions three folders below": (each("sub/txt/en/#.txt", str), {}, "Copy them beside the images ('cp ", {}),
    "captions in a folder of their kind": (each("../captions/txt/#.txt", str), {}, "Copy them beside the images (", {}),
    "captions in folders like those of the images": (
        each("../../captions/images/#.txt", str), {}, "Copy them beside the images ('cp ", {}
    ),
    "captions beside": (each("../captions/#.txt", str), {}, "Copy them beside the images ('cp ", {}),
    "captions in a table above": (
        {"../metadata.jsonl": re.sub('"([01].png)', r'"images/\1', table(text="CAPTION"))}, {},
        "metadata.jsonl has captions of the images. Give 'captions_file: ", {},
    ),
    "unknown columns": (
        {"t.jsonl": table(cap="CAPTION").replace("file_name", "img")}, {},
        "its columns are img, cap. Fill in 'columns: {image: ..., prompt: ...}'", {"image": "img", "prompt": "cap"},
    ),
    "an unknown caption": (
        {"t.jsonl": table(en="CAPTION", by="anna")}, {}, "Fill in 'columns: {prompt: ...}', or give", {"prompt": "en"}
    ),
    "a caption in JSON under an unknown title": (
        {"t.jsonl": table(meta=json.dumps({"caption": "CAPTION"}))}, {}, "Fill in 'columns: {prompt", {"prompt": "meta"}
    ),
    "a column of files": (
        {"t.jsonl": table(text="CAPTION", photo="../before/#.png")}, {},
        "Fill in 'columns: {image: ..., control: ...}' (or mask, or ignore)",
        {"image": "file_name", "control": "photo"},
    ),
    "tags that are no text": (
        {"t.jsonl": table(text="CAPTION", tags={"a": 1})}, {}, "or give 'columns: {ignore: tags}'", {}
    ),
    "a list in a cell": (
        {"t.csv": 'image,text\n0.png,"[\'a red house\']"\n1.png,"[""a blue boat"", ""a boat""]"\n'}, {},
        "has a list of 2 captions. Give 'captions: lines'", {},
    ),
    "a line twice": (
        {"t.jsonl": f"{table(text='CAPTION')}\n{table(text='again')}"}, {}, "or give 'captions: lines'", {}
    ),
    "two tables": (
        {"a.jsonl": table(text="CAPTION"), "b.csv": "image,text\n0.png,x\n1.png,y\n"}, {},
        "Give one as 'captions_file'", {"captions_file": "a.jsonl"},
    ),
    "Markdown": (
        each("#.txt", lambda caption: f"**{caption}**"), {}, "Write plain text", each("#.txt", str)
    ),
    "an introduction": (
        each("#.txt", lambda caption: f"Caption: {caption}"), {}, "of language models are plain text here. Remove them",
        each("#.txt", str),
    ),
    "no header": ({"t.csv": "0.png,a red house\n1.png,a blue boat\n"}, {}, "Put 'file_name,caption' above it", {}),
    "commas": ({"t.csv": CSV}, {}, "Put a caption that has ',' in it into quotation marks", {"t.csv": QUOTED}),
    "commas and unknown titles": (
        {"t.csv": CSV.replace("image,text", "bild,satz")}, {}, "{image: ..., prompt: ...}",
        {"image": "bild", "prompt": "satz", "t.csv": QUOTED.replace("image,text", "bild,satz")},
    ),
    "commas and given titles": (
        {"t.csv": CSV.replace("image,text", "bild,satz")}, {"columns": {"image": "bild", "prompt": "satz"}},
        "into quotation marks", {"t.csv": QUOTED.replace("image,text", "bild,satz")},
    ),
}  # fmt: skip


def keys_in(message: str, filled: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the dataset that a message gives; the first of several."""
    keys: dict[str, Any] = {}
    for key, value in re.findall(r"'([a-z_]+): (.*?)'(?=[., ]|$)", message):
        given = yaml.safe_load(value)
        if key == "columns":
            given = {role: filled[role] if name == "..." else name for role, name in given.items()}  # fmt: skip
        keys.setdefault(key, given)
    if "'captions_file'" in message:
        keys["captions_file"] = filled["captions_file"]
    return keys


def answers(folder: Path, keys: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Errors, or what is warned of and not used; and captions."""
    section = {"folder_path": str(folder), "resolution": 64, **keys}
    if "captions_file" in section:
        section["captions_file"] = str(folder / section["captions_file"])
    try:
        scan = scan_datasets([DatasetConfig.model_validate(section)], None)
    except DataErrors as errors:
        return [str(error) for error in errors.errors], []
    told = [note for note in scan.notes if note.startswith("warning: ")]
    return told + [why for _, why in scan.unused], [s.texts[0] for s in scan.samples]


@pytest.mark.parametrize("name", CASES)
def test_what_the_scan_tells_to_write_works(tmp_path: Path, name: str) -> None:
    files, keys, said, filled = CASES[name]
    folder = tmp_path / "set" / "images"
    for at, image in enumerate(IMAGES):
        make_image(folder / image, colour=f"#{at}000ff")
        make_image(folder.parent / "before" / image, colour=f"#{at}00000")
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content)
    before, _ = answers(folder, keys)
    message = "\n".join(line for line in before if said in line)
    assert message, before
    for file in filter(files.__contains__, filled):
        (folder / file).write_text(filled[file])
    if name == "no header":
        (file,) = files
        (folder / file).write_text(f"file_name,caption\n{files[file]}")
    for command in re.findall(r"\('(cp .*?)'\)", message)[:1]:
        subprocess.run(command, shell=True, check=True)
    after, captions = answers(folder, {**keys, **keys_in(message, filled)})
    assert not [line for line in after if said in line or "cannot" in line], after
    smiling = ", smiling" if "commas" in name else ""
    assert captions == [f"{text}{smiling}" for text in TEXTS], after


def test_images_below_an_archive_and_their_captions_are_told_in_one_answer(
    tmp_path: Path,
) -> None:
    for image in IMAGES:
        make_image(tmp_path / image)
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as packed_files:
        for at, image in enumerate(IMAGES):
            packed_files.write(tmp_path / image, f"set/images/{image}")
            packed_files.writestr(f"set/captions/{at}.txt", TEXTS[at])
    (told,) = answers(archive, {})[0]
    assert f"give {archive}/set/images. {archive}/set/captions has texts" in told
    assert "Unpack the archive, and put them beside the images" in told
    subprocess.run(
        f"cd {shlex.quote(str(tmp_path))} && python3 -m zipfile -e set.zip out && cp out/set/captions/* out/set/images",
        shell=True,
        check=True,
    )
    assert answers(tmp_path / "out" / "set" / "images", {}) == ([], [*TEXTS])


@pytest.mark.parametrize(
    "keys",
    [{"default_caption": "a thing"}, {"captions": "names"}, {"is_reg": True}],
    ids=str,
)
def test_captions_elsewhere_are_no_error_where_the_job_says_what_is_meant(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    for at, image in enumerate(IMAGES):
        make_image(tmp_path / "images" / image)
        (tmp_path / "captions").mkdir(exist_ok=True)
        (tmp_path / "captions" / f"{at}.txt").write_text("a word")
    assert len(answers(tmp_path / "images", keys)[1]) == 2


@pytest.mark.parametrize(
    ("folder", "text"),
    [
        ("labels", "0 0.5 0.5 0.25 1e-05"),  # YOLO
        ("other", "few and far"),
        ("other/captions", "a word"),  # of another dataset
    ],
)
def test_other_texts_of_the_same_names_are_no_captions(
    tmp_path: Path, folder: str, text: str
) -> None:
    for at, image in enumerate(IMAGES):
        make_image(tmp_path / "images" / image)
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / f"{at}.txt").write_text(text)
    assert answers(tmp_path / "images", {})[1] == ["", ""]


def test_a_folder_beside_that_has_such_images_has_its_own_captions(
    tmp_path: Path,
) -> None:
    for at in range(6):
        for folder in ("one", "captions"):
            make_image(tmp_path / folder / f"{at}.png")
        (tmp_path / "captions" / f"{at}.txt").write_text("a word")
    assert answers(tmp_path / "one", {})[1] == [""] * 6


def test_texts_of_few_of_the_images_are_no_captions_of_them(tmp_path: Path) -> None:
    for at in range(9):
        make_image(tmp_path / "images" / f"{at}.png")
    (tmp_path / "captions").mkdir()
    for at in range(4):
        (tmp_path / "captions" / f"{at}.txt").write_text("a word")
    assert answers(tmp_path / "images", {})[1] == [""] * 9


def test_two_datasets_of_one_folder_may_read_two_keys_of_json(tmp_path: Path) -> None:
    make_image(tmp_path / "0.png")
    (tmp_path / "0.json").write_text('{"nl": "a house", "caption": "house"}')
    sections = [
        DatasetConfig.model_validate(
            {"folder_path": str(tmp_path), "caption_ext": "json", "columns": columns}
        )
        for columns in ({"prompt": "nl"}, {}, {"prompt": "nl"})
    ]
    captions = [sample.caption for sample in scan_datasets(sections, None).samples]
    assert captions == ["a house", "house", "a house"]


def test_columns_that_name_a_key_of_json_files_are_not_called_idle(
    tmp_path: Path,
) -> None:
    make_image(tmp_path / "0.png")
    for text, ending in (('{"nl": "a house"}', "json"), ("a house", "txt")):
        (tmp_path / f"0.{ending}").write_text(text)
        keys = {"columns": {"prompt": "nl"}, "caption_ext": ending}
        told, captions = answers(tmp_path, keys)
        idle = [line for line in told if "'columns' is given, and no table" in line]
        assert bool(idle) == (ending == "txt") and captions == ["a house"]


def test_captions_of_all_images_in_one_text_are_read(tmp_path: Path) -> None:
    for image in IMAGES:
        make_image(tmp_path / image)
    for between in (": ", "\t", ", ", " | ", " - ", " = ", ";"):
        lines = (f"{image}{between}{text}" for image, text in zip(IMAGES, TEXTS, strict=True))  # fmt: skip
        (tmp_path / "captions.txt").write_text("\n".join(lines))
        assert answers(tmp_path, {}) == ([], [*TEXTS]), between
    for text in (dict(zip(IMAGES, TEXTS, strict=True)), table(text="CAPTION")):
        text = text if isinstance(text, str) else json.dumps(text)
        (tmp_path / "captions.txt").write_text(text)
        assert answers(tmp_path, {}) == ([], [*TEXTS]), text
    (tmp_path / "captions.txt").write_text("0: a red house\n1: a blue boat")
    told, _ = answers(tmp_path, {})
    remedy = "a file for all images has the name of each, a tab, its caption"
    assert [line for line in told if remedy in line and "captions.txt" in line]


def test_caption_files_that_are_all_empty_are_a_warning_with_a_trigger_too(
    tmp_path: Path,
) -> None:
    for image in IMAGES:
        make_image(tmp_path / image)
        (tmp_path / image).with_suffix(".txt").write_text(" \n")
    for trigger in ("pipo", None):
        section = DatasetConfig(folder_path=str(tmp_path), resolution=(64,))
        notes = scan_datasets([section], trigger).notes
        told = "0.txt is empty: write the caption into it"
        assert [note for note in notes if note.startswith("warning") and told in note]
