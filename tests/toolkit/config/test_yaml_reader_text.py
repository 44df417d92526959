"""JSON with comments, byte order marks, files that are no text."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.config import load_job
from toolkit.config.yaml_reader import strip_json_comments
from toolkit.errors import ConfigErrors

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
    assert job.processes[0].raw == {"type": "drop_in", "url": "http://x//y", "smile": "😀", "n": 1e-4}


def test_places_in_json_are_those_of_the_file(mistakes) -> None:
    assert mistakes(JSONC.replace('"type"', '"typ"'), file="job.jsonc", env={})[0].startswith("6:15: process[0].type")


def test_comments_become_blanks_of_equal_length() -> None:
    text = '{"a": "//", // b\n/* c\n*/ "d": 1}'
    assert strip_json_comments(text) == '{"a": "//",     \n    \n   "d": 1}'


def test_a_byte_order_mark_is_no_part_of_the_text(load) -> None:
    text = "job: extension\nconfig: {name: a, process: [{type: drop_in}]}\n"
    assert load("\ufeff" + text).unexpanded_text == text


def test_a_file_that_is_no_text_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"job: \xff\xfe")
    with pytest.raises(ConfigErrors, match="is not UTF-8 text"):
        load_job(path, lambda name: None)
    with pytest.raises(ConfigErrors, match="cannot be read"):
        load_job(tmp_path, lambda name: None)
