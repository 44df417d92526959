import json
import os
import re
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest

from tests.golden_tables import golden
from toolkit.contracts.data import CaptionRules, Sample, Size
from toolkit.data.scan.captions import (
    CaptionError,
    add_prefix,
    caption_files,
    caption_for_use,
    drawn_caption,
    find_captions,
    inject_trigger,
    prompt_warnings,
    read_caption,
    with_caption,
)
from toolkit.data.scan.directory import list_folder
from toolkit.data.scan.folder import scan_datasets
from toolkit.data.scan.tables import TableRow, read_table
from toolkit.errors import DataErrors, Diagnostic

POINTER = (
    f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 99735\n"
)
OF_LFS = "is what Git LFS has in the place of a file that was not downloaded. Run 'git lfs pull'"
NO_TEXT = "holds no 'caption' of text"
REMEDY = "Write one, or take .json out of caption_ext"


@pytest.mark.parametrize(
    ("name", "raw", "caption", "error"),
    [
        ("a.txt", "\ufeff  grüne\r\nKatze 🙂 \r\n\n".encode(), "grüne\nKatze 🙂", ""),
        ("a.txt", "grün".encode("cp1252"), "", "byte 0xfc at offset 2"),
        ("a.txt", b"\xef\xbb\xbfgr\xfcn", "", "byte 0xfc at offset 5"),
        ("a.txt", "a cat".encode("utf-16"), "", "byte 0xff at offset 0"),
        ("a.txt", "a cat".encode("utf-16-le"), "", "zero byte at offset 1"),
        ("a.txt", POINTER.encode(), "", OF_LFS),
        ("a.json", POINTER.encode(), "", OF_LFS),
        ("a.json", b'{"caption": " a cat ", "tags": "b"}', "a cat", ""),
        ("a.json", b'"a cat"', "a cat", ""),
        ("a.json", b'{"Text": "a cat"}', "a cat", ""),
        ("a.json", b'{"caption": [" one ", "two"]}', "one\ntwo", ""),
        ("a.json", b"a cat", "", NO_TEXT),
        ("a.json", b"[]", "", NO_TEXT),
        ("a.json", b'{"caption": 3}', "", NO_TEXT),
        ("a.json", b'{"width": 3}', "", NO_TEXT),
        ("a.json", b'{"high_level_description": "a cat", "x": {}}', "a cat", ""),
        ("a.txt", b'\n{"high_level_description": "a cat"}', "a cat", ""),
        ("a.txt", b'{"caption": ["one", "two"], "tags": "b"}', "one\ntwo", ""),
        ("a.json", b'{"tags": ["1girl", "hat"]}', "1girl, hat", ""),
        ("a.txt", b'{"scene": "a park", "subjects": [{}]}', "", "JSON document, and"),
        ("a.txt", b"{}", "", "Write the sentence alone, or as its 'caption'"),
        ("a.txt", b'["one", "two"]', "one\ntwo", ""),
        ("a.txt", b"['one', 'two']", "one\ntwo", ""),
        ("a.txt", b"{'caption': 'a cat', 'n': None}", "a cat", ""),
        ("a.txt", b'{"caption": "a cat", "tags": ["b', "", "is cut or damaged"),
        ("a.txt", b'["one", "tw', "", "is cut or damaged"),
        ("a.txt", b"[1, 2]", "", "JSON document, and holds no 'caption'"),
        ("a.txt", b"[trigger]", "[trigger]", ""),
        ("a.txt", b"[red:blue:0.5] cat", "[red:blue:0.5] cat", ""),
        (
            "a.json",
            b'{"nl": "a cat", "n": 3, "tags": {"a": []}}',
            "",
            r"Give 'columns: \{prompt: nl\}'$",
        ),
        (
            "a.json",
            b'{"nl": "a cat", "x": ["a", "b"]}',
            "",
            r"Fill in 'columns: \{prompt: \.\.\.\}' with one of nl, x$",
        ),
        ("a.caption", b'{"caption": 3}', "", "the model is trained on sentences"),
        ("a.txt", b"{red|blue} cat", "{red|blue} cat", ""),
        ("a.txt", b'{"a cat" in quotes}', '{"a cat" in quotes}', ""),
    ],
)
def test_what_a_caption_file_holds_is_its_caption_or_refused(
    tmp_path: Path, name: str, raw: bytes, caption: str, error: str
) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    if not error:
        assert read_caption(path) == caption
        return
    with pytest.raises(CaptionError, match=error) as refused:
        read_caption(path)
    if error == NO_TEXT and path.suffix == ".json":
        assert REMEDY in str(refused.value)
    if error == NO_TEXT:
        with pytest.raises(CaptionError, match=error):
            with_caption(path, "x")


def test_a_pointer_of_git_lfs_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text(POINTER)
    table = read_table(str(tmp_path / "captions.csv"))
    assert table.rows == {}
    assert [OF_LFS in mistake.message for mistake in table.mistakes] == [True]


HALVES = {
    # what: (file, its text, keys of the dataset, place that is named)
    "a line": (
        "t.jsonl", '{"file_name": "a.png", "text": "\\ud83d\\ude00"}\n{"file_name": "b.png", "text": "a \\ud83d"}',
        {}, ":2",
    ),
    "an entry": ("t.json", '{"a.png": "a \\ude00", "b.png": "\\ud83d"}', {}, ":1"),
    "tags": ("t.jsonl", '{"file_name": "a.png", "text": "cat", "tags": "b\\ud83d"}', {}, ":1"),
    "a name": ("t.jsonl", '{"file_name": "\\ud83d.png", "text": "x"}\n{"file_name": "b.png", "text": "x"}', {}, ":1"),
    "a caption file": ("a.json", '{"caption": "a \\ud83d cat"}', {"caption_ext": (".json",)}, ""),
}  # fmt: skip


@pytest.mark.parametrize("what", HALVES)
def test_half_a_character_is_named_where_it_stands(
    tmp_path: Path, image, dataset, what: str
) -> None:
    """Tokenizers read none, and the run would end while captions are encoded."""
    name, text, keys, place = HALVES[what]
    image(tmp_path / "a.png"), image(tmp_path / "b.png")
    (tmp_path / name).write_text(text)
    reason = (
        r"has half a character \('\\ud\w+'\), as of an emoji that was cut\. Remove it"
    )
    with pytest.raises(DataErrors, match=rf"{name}{place}: {reason}"):
        scan_datasets([dataset(tmp_path, **keys)], None)


def test_the_name_of_a_file_that_is_no_text_is_no_caption(
    tmp_path: Path, image, dataset
) -> None:
    image(tmp_path / "a.png").rename(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.png"))
    with pytest.raises(DataErrors, match="has half a character"):
        scan_datasets([dataset(tmp_path, captions="names")], None)


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

    mistakes: list[Diagnostic] = []
    assert list(listing.images) == list("abcdef")
    assert captions(".cap", ".txt") == ["second", "b", "", "", "", "f"]
    assert "f.txt" not in listing.texts  # nobody wants to know
    assert captions(".v2.txt") == ["", "", "c", "", "", ""]
    assert mistakes == []


def test_captions_that_cannot_be_used_are_all_named_and_the_others_read(
    tmp_path: Path,
) -> None:
    for name, raw in (
        ("a.txt", b"\xff"),
        ("b.txt", b"b"),
        ("c.txt", b"\0"),
        ("d.txt", b"d"),
    ):
        (tmp_path / name).write_bytes(raw)
        (tmp_path / name).with_suffix(".png").touch()
    listing = list_folder(str(tmp_path))
    (tmp_path / "d.txt").unlink()
    mistakes: list[Diagnostic] = []
    assert find_captions(listing, caption_files(listing, (".txt",)), mistakes) == [
        "",
        "b",
        "",
        "",
    ]
    assert [Path(mistake.place).name for mistake in mistakes] == [
        "a.txt",
        "c.txt",
        "d.txt",
    ]
    assert "cannot be read: No such file" in mistakes[2].message


# ------------------------------------------------------------ one file for all


def test_a_table_of_captions(tmp_path: Path) -> None:
    path = tmp_path / "captions.tsv"
    path.write_bytes(
        "\ufeffa.jpg\t a cat\t \r\n\r\n \n40_x/ä b.png\tgrün\u2028e\nc.png\t\n./d.png\td".encode()
    )
    table = read_table(str(path))
    captions = {name: row.caption for name, row in table.rows.items()}
    expected = {
        "a.jpg": "a cat",
        "40_x/ä b.png": "grün\u2028e",
        "c.png": "",
        "d.png": "d",
    }
    assert (captions, table.mistakes) == (expected, [])
    path.write_text("a\u0308.png\tfrom macOS", encoding="utf-8")
    assert read_table(str(path)).rows == {"ä.png": TableRow("from macOS")}


def test_a_third_column_is_no_part_of_the_caption(tmp_path: Path) -> None:
    """The table is read once the line has what the message says."""
    path = tmp_path / "captions.tsv"
    path.write_text("a.jpg\ta cat\t0.9\tx\nb.jpg\ta dog\n")
    (refused,) = read_table(str(path)).mistakes
    assert refused.place == f"{path}:1"
    assert refused.message == (
        "has a third column, '0.9\\tx'. A caption has no tab: write a space, or a header that names each column"
    )
    for mended in (
        "a.jpg\ta cat 0.9 x\nb.jpg\ta dog\n",
        "file_name\tcaption\tscore\tnote\na.jpg\ta cat\t0.9\tx\nb.jpg\ta dog\n",
    ):
        path.write_text(mended)
        table = read_table(str(path))
        assert not table.mistakes and table.rows["a.jpg"].caption.startswith("a cat")


def test_all_lines_of_a_table_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "captions.tsv"
    path.write_text(
        "\na.jpg\ta\nb.jpg a dog\n\tno name\n./a.jpg\tagain\nc.jpg\tc\n" + "x" * 99
    )
    table = read_table(str(path))
    assert table.rows == {"a.jpg": TableRow("a"), "c.jpg": TableRow("c")}
    remedy = "Write the name of the image, a tab, its caption"
    assert list(map(str, table.mistakes)) == [
        f"{path}:3: 'b.jpg a dog': no tab. {remedy}",
        f"{path}:4: 'no name': no name before the tab. {remedy}",
        f"{path}:5: 'a.jpg' has a caption in line 2. Remove one of them, or give 'captions: lines', which "
        "draws one at each use",
        f"{path}:7: '{'x' * 40}': no tab. {remedy}",
    ]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a.txt", "old", "another\n"),
        ("a.json", '"old"', '"another"\n'),
        (
            "a.json",
            '{"x": 1, "Prompt": "old"}',
            '{\n  "x": 1,\n  "Prompt": "another"\n}\n',
        ),
        ("a.json", '{"text": ["old"]}', '{\n  "text": [\n    "another"\n  ]\n}\n'),
        ("a.json", '["old"]', '[\n  "another"\n]\n'),
    ],
)
def test_a_caption_is_exchanged_and_read_again(
    tmp_path: Path, name: str, old: str, new: str
) -> None:
    file = tmp_path / name
    file.write_text(old)
    assert read_caption(file) == "old"
    assert with_caption(file, "another") == new
    file.write_text(new)
    assert read_caption(file) == "another"


def test_a_list_is_written_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"caption": [" one ", "two"]}')
    written = json.loads(with_caption(tmp_path / "a.json", "one\n\nthree\nfour"))
    assert written == {"caption": ["one", "three", "four"]}


def test_one_of_several_captions_is_drawn_by_seed_epoch_and_position() -> None:
    sample = Sample("a.png", "a", 1, Size(8, 8), "f", captions=("a", "b", "c"))
    uses = [(epoch, position) for epoch in range(20) for position in range(30)]
    drawn = [drawn_caption(sample, 3, *use) for use in uses]
    assert drawn == [drawn_caption(sample, 3, *use) for use in uses]
    # 200 of each on average, 12 is one deviation
    assert all(170 < drawn.count(text) < 230 for text in "abc")
    other = [drawn_caption(sample, 4, *use) for use in uses]
    assert (
        0.6
        < sum(one != two for one, two in zip(drawn, other, strict=True)) / len(uses)
        < 0.73
    )
    assert drawn_caption(sample._replace(captions=()), 3, 0, 0) == "a"


def test_prompts_of_samples_without_the_trigger_word_are_a_warning() -> None:
    far = "a person at night, from far away and in the rain"
    prompts = ["[trigger], smiling", "zxq at night", far, "{trigger} once"]
    first, second = prompt_warnings(prompts, ["zxq", "abc"])
    assert (
        first
        == "warning: sample: 1 of 4 prompts with '{trigger}', which nothing replaces. Write '[trigger]'"
    )
    assert second == (
        "warning: sample: 2 of 4 prompts without the trigger word 'zxq' or 'abc': "
        "'a person at night, from far away [...]', '{trigger} once'. "
        "Write '[trigger]' into those that are to show what is trained"
    )
    assert (
        [*prompt_warnings(prompts[:2], ["zxq"])]
        == []
        == [*prompt_warnings(["any"], [])]
    )
    marked = ["a (cup:1.3), <lora:my_char:0.8>", "a cup (10:30), (small)"]
    (told,) = prompt_warnings(marked, [])
    assert told.startswith(
        "warning: sample: prompts with '(cup:1.3)', '<lora:my_char:0.8>': weights and LoRAs of other"
    )
    (literal,) = prompt_warnings(prompts[:2], [])
    assert literal.endswith(
        "1 of 2 prompts with '[trigger]', which nothing replaces. Give the job a 'trigger_word'"
    )


# ------------------------------------------------------------ each use


# `to_replace_list` is an option of the peer that jobs here do not have.
INJECT = [
    case for case in golden("captions", table="inject") if not case["to_replace_list"]
]


def test_golden_injection() -> None:
    for case in INJECT:
        given = (case["prompt"], case["trigger"], case["add_if_not_present"])
        assert inject_trigger(*given) == case["result"], case


def test_golden_captions_but_for_the_spaces_around_commas() -> None:
    """The peer splits at commas and joins with another space, which jobs here do not
    get (tests/golden/README.md)."""
    for case in golden("captions", table="caption"):
        add = not case["is_reg"]
        caption = inject_trigger(case["raw"], case["trigger_word"], add=add)
        both = [re.sub(r" *, *", ",", text) for text in (caption, case["result"])]
        assert both[0] == both[1], case


def uses(
    caption: str, rules: CaptionRules, count: int = 400, seed: int = 1
) -> list[str]:
    return [
        caption_for_use(caption, rules, seed, 0, position) for position in range(count)
    ]


def orders(before: str, *tokens: str) -> set[str]:
    """A caption with these tokens in every order behind what stays."""
    return {before + ", ".join(order) for order in permutations(tokens)}


@pytest.mark.parametrize(
    ("caption", "rules", "captions"),
    [
        ("a,b ,, c", {"trigger": "sks"}, {"a,b ,, c"}),
        ("a", {"dropout_rate": 1.0}, {""}),
        ("a", {"dropout_rate": 0.0}, {"a"}),
        ("a hat,b coat , c", {"shuffle_tokens": True}, orders("", "a hat", "b coat", "c")),
        # the trigger that was put in front is no token
        (
            "zxq man a, b, c, d", {"shuffle_tokens": True, "keep_tokens": 1, "trigger": "zxq man"},
            orders("zxq man a, ", "b", "c", "d"),
        ),
        ("sks a, b, c", {"shuffle_tokens": True, "trigger": "sks"}, orders("sks ", "a", "b", "c")),
        ("sks, a, b", {"shuffle_tokens": True, "trigger": "sks"}, orders("sks, ", "a", "b")),
        (
            "a, of sks, b", {"shuffle_tokens": True, "trigger": "sks"}, {"a, of sks, b", "b, of sks, a"},
        ),
    ],
)  # fmt: skip
def test_rules_reach_all_that_they_allow_and_nothing_else(
    caption: str, rules: dict, captions: set[str]
) -> None:
    assert set(uses(caption, CaptionRules(**rules))) == captions


@pytest.mark.parametrize(
    "case",
    golden("captions", table="dropout_rate"),
    ids=lambda c: c["caption_dropout_rate"],
)
def test_dropout_rate_is_a_probability_per_use(case: dict) -> None:
    rate = case["caption_dropout_rate"]
    captions = uses(
        "sks a cat", CaptionRules(dropout_rate=rate, trigger="sks"), case["draws"]
    )
    assert set(captions) == {"", "sks a cat"}
    found = captions.count("") / len(captions)
    assert found == pytest.approx(rate, abs=0.01) and found == pytest.approx(
        case["dropped_fraction"], abs=0.01
    )


def test_draws_depend_on_seed_epoch_and_position_and_repeat() -> None:
    rules = CaptionRules(dropout_rate=0.5)
    first = uses("a", rules)
    assert first == uses("a", rules)
    assert first != uses("a", rules, seed=2)
    assert first != [
        caption_for_use("a", rules, 1, 1, position) for position in range(400)
    ]


@pytest.mark.parametrize(
    ("trigger", "prefix", "begin"),
    [
        ("", "flat, drawn", "flat, drawn. "),
        ("sks", "flat, drawn", "sks flat, drawn. "),
        ("sks", "sks art, drawn", "sks art, drawn. "),
        ("sks", "by sks, drawn", "by sks, drawn. "),
    ],
)
def test_shuffling_neither_moves_nor_tears_a_prefix(
    trigger: str, prefix: str, begin: str
) -> None:
    rules = CaptionRules(0.1, shuffle_tokens=True, trigger=trigger, prefix=prefix)
    assert set(uses(inject_trigger(add_prefix("a, b", prefix), trigger), rules)) == {
        "",
        f"{begin}a, b",
        f"{begin}b, a",
    }
    assert set(uses(inject_trigger(prefix, trigger), rules)) == {
        "",
        begin.removesuffix(". "),
    }
    captions = set(
        uses(
            inject_trigger(add_prefix("a, b, c", prefix), trigger),
            replace(rules, keep_tokens=1),
        )
    )
    assert captions == {"", f"{begin}a, b, c", f"{begin}a, c, b"}
