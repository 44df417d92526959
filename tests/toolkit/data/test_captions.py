from pathlib import Path

import pytest

from toolkit.data.captions import (
    CaptionError,
    TableRow,
    caption_files,
    find_captions,
    prompt_warnings,
    read_caption,
    read_captions_file,
    with_caption,
)
from toolkit.data.directory import list_folder
from toolkit.errors import InputError


def test_text_is_stripped_of_mark_whitespace_and_carriage_returns(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff  grüne\r\nKatze 🙂 \r\n\n".encode())
    assert read_caption(path) == "grüne\nKatze 🙂"


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        ("grün".encode("cp1252"), "byte 0xfc at offset 2"),
        (b"\xef\xbb\xbfgr\xfcn", "byte 0xfc at offset 5"),
        ("a cat".encode("utf-16"), "byte 0xff at offset 0"),
        ("a cat".encode("utf-16-le"), "zero byte at offset 1"),
    ],
)
def test_other_encodings_are_refused_with_their_place(tmp_path: Path, raw: bytes, place: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(raw)
    with pytest.raises(CaptionError, match=place):
        read_caption(path)


def test_first_caption_that_is_not_empty(tmp_path: Path) -> None:
    for name, text in (
        ("a.cap", " \n"),
        ("a.TXT", "second"),
        ("b.txt", "b"),
        ("c.v2.txt", "c"),
        ("e.txt", ""),
        ("f.txt", "-"),
        ("f.cap", "f"),
    ):
        (tmp_path / name).write_text(text)
    for stem in "abcdef":
        (tmp_path / f"{stem}.png").touch()
    listing = list_folder(str(tmp_path))

    def captions(*suffixes: str) -> list[str]:
        return find_captions(listing, caption_files(listing, suffixes), mistakes)

    mistakes: list[InputError] = []
    assert list(listing.images) == list("abcdef")
    assert captions(".cap", ".txt") == ["second", "b", "", "", "", "f"]
    assert "f.txt" not in listing.texts  # nobody wants to know
    assert captions(".v2.txt") == ["", "", "c", "", "", ""]
    assert mistakes == []


def test_captions_that_cannot_be_used_are_all_named_and_the_others_read(tmp_path: Path) -> None:
    for name, raw in (("a.txt", b"\xff"), ("b.txt", b"b"), ("c.txt", b"\0"), ("d.txt", b"d")):
        (tmp_path / name).write_bytes(raw)
        (tmp_path / name).with_suffix(".png").touch()
    listing = list_folder(str(tmp_path))
    (tmp_path / "d.txt").unlink()
    mistakes: list[InputError] = []
    assert find_captions(listing, caption_files(listing, (".txt",)), mistakes) == ["", "b", "", ""]
    assert [Path(mistake.place).name for mistake in mistakes] == ["a.txt", "c.txt", "d.txt"]
    assert "cannot be read: No such file" in mistakes[2].message


@pytest.mark.parametrize("text", ['{"caption": " a cat ", "tags": "b"}', '"a cat"', '{"Text": "a cat"}'])
def test_a_caption_in_a_json_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert read_caption(tmp_path / "a.json") == "a cat"


@pytest.mark.parametrize("text", ["a cat", "[]", '{"caption": 3}', '{"width": 3}'])
def test_a_json_file_without_a_caption_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CaptionError, match="holds no 'caption' of text"):
        read_caption(tmp_path / "a.json")


# ------------------------------------------------------------ one file for all


def test_a_table_of_captions(tmp_path: Path) -> None:
    path, mistakes = tmp_path / "captions.tsv", []
    path.write_bytes(
        "\ufeffa.jpg\t a cat\twith a tab \r\n\r\n \n40_x/ä b.png\tgrün\u2028e\nc.png\t\n./d.png\td".encode()
    )
    captions = {name: row.caption for name, row in read_captions_file(str(path), mistakes).items()}
    expected = {"a.jpg": "a cat\twith a tab", "40_x/ä b.png": "grün\u2028e", "c.png": "", "d.png": "d"}
    assert (captions, mistakes) == (expected, [])
    path.write_text("a\u0308.png\tfrom macOS", encoding="utf-8")
    assert read_captions_file(str(path), mistakes) == {"ä.png": TableRow("from macOS")}


def test_all_lines_of_a_table_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path, mistakes = tmp_path / "captions.tsv", []
    path.write_text("\na.jpg\ta\nb.jpg a dog\n\tno name\n./a.jpg\tagain\nc.jpg\tc\n" + "x" * 99)
    assert read_captions_file(str(path), mistakes) == {"a.jpg": TableRow("a"), "c.jpg": TableRow("c")}
    remedy = "Write the name of the image, a tab, its caption"
    assert list(map(str, mistakes)) == [
        f"{path}:3: 'b.jpg a dog': no tab. {remedy}",
        f"{path}:4: 'no name': no name before the tab. {remedy}",
        f"{path}:5: 'a.jpg' has a caption in line 2. Remove one of them",
        f"{path}:7: '{'x' * 40}': no tab. {remedy}",
    ]


@pytest.mark.parametrize(("raw", "reason"), [(None, "cannot be read: No such file"), (b"a\t\xff", "at offset 2")])
def test_a_table_that_cannot_be_read_is_a_mistake(tmp_path: Path, raw: bytes | None, reason: str) -> None:
    path, mistakes = tmp_path / "captions.tsv", []
    if raw is not None:
        path.write_bytes(raw)
    assert read_captions_file(str(path), mistakes) == {}
    [mistake] = mistakes
    assert mistake.place == str(path) and reason in mistake.message


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a.txt", "old", "another\n"),
        ("a.json", '"old"', '"another"\n'),
        ("a.json", '{"x": 1, "Prompt": "old"}', '{\n  "x": 1,\n  "Prompt": "another"\n}\n'),
    ],
)
def test_a_caption_is_exchanged_and_read_again(tmp_path: Path, name: str, old: str, new: str) -> None:
    file = tmp_path / name
    file.write_text(old)
    assert read_caption(file) == "old"
    assert with_caption(file, "another") == new
    file.write_text(new)
    assert read_caption(file) == "another"


def test_a_json_without_a_caption_gets_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"width": 3}')
    with pytest.raises(CaptionError, match="holds no 'caption'"):
        with_caption(tmp_path / "a.json", "x")


def test_prompts_of_samples_without_the_trigger_word_are_a_warning() -> None:
    far = "a person at night, from far away and in the rain"
    prompts = ["[trigger], smiling", "zxq at night", far, "{trigger} once"]
    first, second = prompt_warnings(prompts, ["zxq", "abc"])
    assert first == "warning: sample: 1 of 4 prompts with '{trigger}', which nothing replaces. Write '[trigger]'"
    assert second == (
        "warning: sample: 2 of 4 prompts without the trigger word 'zxq' or 'abc': "
        "'a person at night, from far away [...]', '{trigger} once'. "
        "Write '[trigger]' into those that are to show what is trained"
    )
    assert [*prompt_warnings(prompts[:2], ["zxq"])] == [] == [*prompt_warnings(["any"], [])]
    (literal,) = prompt_warnings(prompts[:2], [])
    assert literal.endswith("1 of 2 prompts with '[trigger]', which nothing replaces. Give the job a 'trigger_word'")
