"""YAML 1.2, JSON with comments, files that are not text, `${VAR}` and its forms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.toolkit.config.conftest import trainer
from toolkit.config import load_job
from toolkit.config.reading import yaml_reader
from toolkit.config.reading.located import Diagnostics
from toolkit.config.reading.yaml_reader import MAX_DEPTH, read_yaml, strip_json_comments
from toolkit.errors import ConfigErrors
from toolkit.files.safetensors_io import framed


def read(text: str) -> Any:
    diagnostics = Diagnostics("f")
    data = read_yaml(text, diagnostics).data()
    diagnostics.raise_errors()
    return data


def fault(text: str) -> str:
    with pytest.raises(ConfigErrors) as caught:
        read(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-1.5e+3", -1500.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("-.inf", -math.inf),
        ("0123", 123),
        ("-7", -7),
        ("0x1F", 31),
        ("0o17", 15),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("True", True),
        ("12:30", "12:30"),
        ("2024-01-02", "2024-01-02"),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("~", None),
        ("null", None),
        ("", None),
        ("'null'", "null"),
        ('"1e-4"', "1e-4"),
        ("!!str 12", "12"),
        ("=", "="),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = read(f"a: {text}")["a"]
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_a_float() -> None:
    assert math.isnan(read("a: .nan")["a"])


def test_a_number_may_be_tagged_as_a_float() -> None:
    assert read("a: !!float 3")["a"] == 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: 1\nb: 2\na: 3\n",
            "f:3:1: a: duplicate key, first given in line 1. Remove one of them.",
        ),
        ("x:\n  1: a\n", "f:2:3: x.1: a key must be text. Put it in quotes."),
        ("x:\n  true: a\n", "f:2:3: x.true: a key must be text. Put it in quotes."),
        ("? [a]\n: b\n", "f:1:3: ?: a key must be text. Put it in quotes."),
        (
            "a: !!python/object:os.system x\n",
            "f:1:4: a: the tag 'tag:yaml.org,2002:python/object:os.system'",
        ),
        ("a: !!int x\n", "f:1:4: a: 'x' is not of the kind int"),
        (
            "a: b: c\n",
            "f:1:5: not valid YAML: ': ' stands twice in a line. Put the text in quotes: \"b: c\"",
        ),
        ("a:\n\t- b\n", "f:2:1: not valid YAML: a tab. Indent with spaces."),
        *(
            (
                text,
                f"f:{place}: not valid YAML: a space of another kind. It holds {odd}",
            )
            for text, place, odd in (
                (
                    "a:\n  b: 1\n\xa0\xa0c: 1\n",
                    "3:1",
                    "U+00A0 (no-break space): type a",
                ),
                (
                    "a:\n \xa0b: 1\n \xa0c: 1\n",
                    "2:2",
                    "U+00A0 (no-break space): type a",
                ),
                ("a:\n  -\xa0b: 1\n    c: 1\n", "2:4", "U+00A0 (no-break space)"),
                ("a:\n\u3000- b\n", "2:1", "U+3000 (ideographic space)"),
                ("a: 1\nb:\xa01\n", "2:3", "U+00A0 (no-break space)"),
            )
        ),
        (
            "a: 1\n---\nb: 1\n",
            "f:2:1: '---' begins a second document. Write one job per file; run.py ",
        ),
        (
            "a: 1\n---\n# end\n",
            "f:2:1: '---' begins a second document, which is empty. Remove it.",
        ),
        ("a: *b\n", "f:1:4: not valid YAML: found undefined alias 'b'"),
        ("a: \x07\n", "f:1:4: not valid YAML"),
        ("", "f:1:1: is empty"),
        ("- a\n", "f:1:1: is not a mapping"),
        ("a: &x [*x]\n", "f:1:4: a[0]: an alias refers to the value that contains it"),
        ("a: " + "[" * 200, f"nested deeper than {MAX_DEPTH} levels"),
        (
            "a: " + "9" * 5000,
            "f:1:4: a: a number of 5,000 digits, of which at most 4,300 are read.",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(
    text: str, message: str
) -> None:
    assert message in fault(text)
    assert "\n" not in fault(text)


@pytest.mark.parametrize(
    ("text", "place", "remedy"),
    [
        (
            "a:\n  steps 3\n  # every\n\n  lr: 1\n",
            "2:3",
            "no ':' follows the key. Write 'key: value'.",
        ),
        ("a:\n  steps 3 # long\n\n  lr: 1\n", "2:3", "no ':' follows the key."),
        ("a: 1\nb\n  c: 1\n", "2:1", "no ':' follows the key."),
        (
            "a:\n  lr:1e-4\n  steps: 3\n",
            "2:3",
            "no space follows the ':'. Write 'key: value'.",
        ),
        (
            "a:\n  c: 1\n  steps:3\n  lr: 1\n",
            "3:3",
            "no space follows the ':'. Write 'key: value'.",
        ),
        (
            "```yaml\na: 1\n```\n",
            "1:1",
            "'```' marks code on a page, and is not part of the job. Remove this line.",
        ),
        (
            "a:\n  -b: x\n    c: 1\n",
            "2:3",
            "'-' and the key are one word. Write a space after '-'.",
        ),
        ("a:\n  - b: x\n  -b: y\n", "3:3", "'-' and the key are one word."),
        (
            "a:\n  - b: [trigger], a temple\n",
            "2:17",
            'a text that begins with a bracket needs quotes around the whole: "[trigger], a temple"',
        ),
        (
            "a:\n  - a photo: b: c # d\n",
            "2:15",
            "': ' stands twice in a line. Put the text in quotes: \"a photo: b: c\"",
        ),
        (
            "a:\n  - & b\n",
            "2:5",
            "a text cannot begin with '&' unless it is in quotes: \"& b\"",
        ),
        (
            "a: **b**\n",
            "1:4",
            "a text cannot begin with '*' unless it is in quotes: \"**b**\"",
        ),
        (
            'a:\n  - *b c*, 5" wide\n',
            "2:5",
            "found undefined alias 'b': no value above is marked '&'. If '*' belongs to the text, put the text in "
            "quotes: '*b c*, 5\" wide'",
        ),
        (
            "a: |b\n",
            "1:4",
            "a text cannot begin with '|' unless it is in quotes: \"|b\"",
        ),
        ("a: {b} c\n", "1:8", "a text that begins with a bracket"),
        ('a: 1\nb: "c\nd: e\n', "2:4", "the quote that opens here is never closed."),
        (
            'a: 1\nb: "c\nd: "e"\n',
            "2:4",
            "the quote that opens here closes within the text. Close it at the end",
        ),
        ("a: 'it's'\n", "1:4", "the quote that opens here closes within the text."),
        (
            'a: "C:\\Users\\me"\n',
            "1:9",
            "'\\' begins an escape within double quotes. Write '/', or use single quotes; in ",
        ),
        (
            'a: "b\\p"\n',
            "1:7",
            "'\\' begins an escape within double quotes. Write '/' or '\\\\', or use single quotes.",
        ),
        (
            "a: [1, 2\nb: 3\n",
            "1:4",
            "the bracket that opens here is not closed, or ',' is missing in it.",
        ),
        ("a:\n  b: 1\n c: 2\n", "3:2", "the indent fits none of the lines above."),
        ("a: b\n- c\n", "2:1", "the indent fits none of the lines above."),
        (
            "a:\n  b: 1\n  - c: 2\n",
            "2:3",
            "'- ' is missing in front of this item of a list, or spaces where it belongs to the item above.",
        ),
        (
            "a:\n  - b: 1\n  c: 2\n  - d: 3\n",
            "3:3",
            "'- ' is missing in front of this item of a list, or spaces where it belongs to the item above.",
        ),
        ('a: "b\nc:\n  d: ""\n', "1:4", "the quote that opens here is never closed."),
        ("a: 16# rank: 8\n", "1:12", "a comment needs a space before its '#'."),
        (
            "a: @b\n",
            "1:4",
            "a text cannot begin with '@' unless it is in quotes: \"@b\"",
        ),
    ],
)
def test_a_mistake_in_the_syntax_is_told_where_it_was_made_with_its_remedy(
    text: str, place: str, remedy: str
) -> None:
    assert fault(text).startswith(f"f:{place}: not valid YAML: {remedy}")


def test_the_beginning_of_a_text_that_yaml_takes_for_an_anchor_is_a_warning() -> None:
    """Of texts whose anchor an alias uses, and of lists and mappings, nothing is
    said."""
    diagnostics = Diagnostics("f")
    root = read_yaml("a:\n  - &amp b\n  - &x c\n  - *x\nd: &y [1]\n", diagnostics)
    assert root.data() == {"a": ["b", "c", "c"], "d": [1]}
    [line] = diagnostics.warnings
    assert line.startswith("f:2:5: a[0]: '&amp' is left out") and line.endswith(
        'put the text in quotes: "&amp b"'
    )


@pytest.mark.parametrize(
    "text",
    [
        "# musubi\n[general]\nresolution = 960\n",
        "[[datasets]]\n",
        'dit = "a.safetensors"\n',
    ],
)
def test_toml_is_called_toml(text: str) -> None:
    assert fault(text).startswith("f:1:1: holds TOML, not YAML. Rename it")


def test_bombs_of_aliases_and_merge_keys_are_refused_before_they_expand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(yaml_reader, "MAX_NODES", 5000)
    aliases = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    aliases += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    merges = ["a0: &a0 {k: v}"]
    merges += [
        f"a{i}: &a{i} {{x{i}: *a{i - 1}, y{i}: *a{i - 1}, <<: [*a{i - 1}, *a{i - 1}]}}"
        for i in range(1, 40)
    ]
    for lines in (aliases, merges):
        assert "aliases expand to more than 5000 values" in fault("\n".join(lines))


def test_aliases_and_merge_keys_work() -> None:
    text = "base: &b {lr: 1, steps: 2}\nmore: &m {steps: 9, x: 3}\na: *b\nc: {<<: [*b, *m], lr: 5}\n"
    data = read(text)
    assert data["a"] == {"lr": 1, "steps": 2}
    assert data["c"] == {"lr": 5, "steps": 2, "x": 3}


def test_places_are_those_of_key_and_value() -> None:
    root = read_yaml("a:\n  b:   [x,\n    y]\n", Diagnostics("f"))
    child = root.value["a"].value["b"]
    places = (child.key_at, child.value_at, child.value[1].value_at)
    assert [(place.line, place.column) for place in places] == [(2, 3), (2, 8), (3, 5)]


# ------------------------------------------------------------ files


JSONC = """{
\t// a comment, with "quotes" and ${NOT_SET}
\t"job": "extension", /* one
\tof two lines */ "config": {
\t\t"name": "json job",
\t\t"process": [{"type": "drop_in", "url": "http://x//y", "smile": "\\ud83d\\ude00", "n": 1e-4,},],
\t},
}
"""


def test_jsonc_with_tabs_comments_and_trailing_commas(load) -> None:
    job = load(JSONC, file="job.jsonc", env={})
    assert job.name == "json job"
    assert job.processes[0].raw == {
        "type": "drop_in",
        "url": "http://x//y",
        "smile": "😀",
        "n": 1e-4,
    }


def test_places_in_json_are_those_of_the_file(mistakes) -> None:
    assert mistakes(JSONC.replace('"type"', '"typ"'), file="job.jsonc", env={})[
        0
    ].startswith("6:15: process[0].type")


def test_comments_become_blanks_of_equal_length() -> None:
    text = '{"a": "//", // b\n/* c\n*/ "d": 1}'
    assert strip_json_comments(text) == '{"a": "//",     \n    \n   "d": 1}'


def test_a_byte_order_mark_is_no_part_of_the_text(load) -> None:
    text = "job: extension\nconfig: {name: a, process: [{type: drop_in}]}\n"
    assert load("\ufeff" + text).unexpanded_text == text


def test_a_file_that_is_no_text_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    for data, said in (
        (
            b"job: a\nx: \xc3\xa4 M\xe4dchen\n",
            r"job.yaml:2:7: is not UTF-8 text: the byte 0xE4 \(in Windows-1252: 'ä'\)",
        ),
        ("job: a".encode("utf-16"), "job.yaml:1:1: is UTF-16 text. Save it as UTF-8."),
        (b"\x89PNG\r\n\x1a\n", r"is an image \(PNG\), not a job"),
        (
            b"SQLite format 3\0",
            r"is a database \(SQLite; ai-toolkit's jobs are in output/NAME/config.yaml\), not",
        ),
        (
            framed("{}") + b" " * 5_000_000,
            "is a safetensors file, not a job. 'run.py inspect FILE' shows",
        ),
    ):
        path.write_bytes(data)
        with pytest.raises(ConfigErrors, match=said):
            load_job(path, lambda name: None)
    with pytest.raises(ConfigErrors, match="cannot be read"):
        load_job(tmp_path, lambda name: None)


# ------------------------------------------------------------ variables


JOB = "job: extension\nmeta: {t: '${A}'}\nconfig:\n  name: n\n  process:\n    - type: drop_in\n      x: %s\n"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${STEPS}", 100),
        ("'${STEPS}'", "100"),
        ("a${STEPS}b", "a100b"),
        ("${LR}", 1e-4),
        ("${WORD}", "yes"),
        ("${UNSET:-7}", 7),
        ("${UNSET:-}", None),
        ("${EMPTY:-x}", "x"),
        ("${EMPTY}", None),
        ("$${STEPS}", "${STEPS}"),
        ("[a, '${WORD}/${STEPS}']", ["a", "yes/100"]),
        ("[${STEPS}, ${UNSET:-a, [b]: #c}, ${LR}]", [100, "a, [b]: #c", 1e-4]),
        ("{y: ${STEPS}, z: a${WORD}}", {"y": 100, "z": "ayes"}),
        ("{y: '${STEPS}', z: $${STEPS}}", {"y": "100", "z": "${STEPS}"}),
        ("{y: '${', z: '}'}", {"y": "${", "z": "}"}),
        ("plain # ${NOT_SET} in a comment", "plain"),
    ],
)
def test_an_unchecked_section_reads_what_would_stand_there(
    load, written: str, value: object
) -> None:
    env = {"STEPS": "100", "LR": "1e-4", "WORD": "yes", "EMPTY": ""}
    assert load(JOB % written, env=env).processes[0].raw["x"] == value


def test_meta_and_the_saved_text_stay_unexpanded(load) -> None:
    job = load(JOB % "${A}", env={"A": "secret"})
    assert job.meta == {"t": "${A}"}
    assert job.unexpanded_text == JOB % "${A}"


def test_an_unset_variable_is_one_mistake_at_its_value(mistakes) -> None:
    (line,) = mistakes(trainer("train: {lr: 1, steps: ${STEPS}}"), env={})
    assert line.startswith("8:29: process[0].train.steps: the environment variable")
    assert mistakes(trainer("train:", "  steps: ${STEPS}"), env={}) == [
        "9:16: process[0].train.steps: the environment variable 'STEPS' is not set. Set it, or write ${STEPS:-default}."
    ]


def test_the_written_name_does_not_matter_when_another_is_given(load) -> None:
    assert (
        load(JOB.replace("name: n", "name: ${UNSET}") % 1, env={}, name="given").name
        == "given"
    )


def test_a_malformed_reference_is_a_mistake(mistakes) -> None:
    (line,) = mistakes(JOB % "${1 x}", env={})
    assert (
        line
        == "7:10: process[0].x: '${1 x}' does not name an environment variable. Write ${NAME}."
    )


def test_a_checked_section_gets_text_and_reads_it_as_its_type(section) -> None:
    env = {"N": "12", "OFF": "off", "RES": "512"}
    found = section(
        "trigger_word: ${N}",
        "train: {steps: '${N}', lr: '${LR:-1e-3}'}",
        "datasets: [{folder_path: photos, resolution: '${RES}', flip_x: '${OFF}'}]",
        env=env,
    )
    assert (found.trigger_word, found.train.steps, found.train.lr) == ("12", 12, 1e-3)
    assert (found.datasets[0].resolution, found.datasets[0].flip_x) == (
        (512,),
        False,
    )
