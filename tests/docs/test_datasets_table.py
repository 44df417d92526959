"""The table of docs/datasets.md that says what is read and how it is reported: its
formats are those of the code, its checks are those of `lint`, and its messages are the
program's."""

from __future__ import annotations

import re
from functools import cache

from extensions.tools.shared.findings import CHECKS
from tests.conftest import ROOT
from toolkit.data.pixels.images import IMAGE_SUFFIXES
from toolkit.data.scan.captions import FORMATS
from toolkit.data.scan.tables import TEXT_TABLES
from toolkit.files import archives, parquet

PAGE = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## What is read, and how it is reported\n")[2].partition(
    "\n### "
)[0]
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in SECTION.splitlines()
    if line.startswith("| ")
]
_QUOTED = re.compile(r'"([^"]+)"')


def rows_of(group: str) -> list[list[str]]:
    """The rows of a part of the table, which begins with its name in bold."""
    starts = [number for number, (what, *_) in enumerate(ROWS) if what.startswith("**")]
    begin = next(
        number for number in starts if ROWS[number][0].startswith(f"**{group}**")
    )
    end = next((number for number in starts if number > begin), len(ROWS))
    return ROWS[begin + 1 : end]


def endings(group: str) -> set[str]:
    """The endings that the rows of a part begin with."""
    found = [re.match(r"(?:`\.[\w.]+`[ ;]*)+", what) for what, *_ in rows_of(group)]
    return {
        ending
        for match in found
        if match
        for ending in re.findall(r"`(\.[\w.]+)`", match[0])
    }


@cache
def said() -> str:
    """The code of the core and of `lint`."""
    places = [
        *(ROOT / "toolkit").rglob("*.py"),
        *(ROOT / "extensions/tools/lint").glob("*.py"),
    ]
    return "\0".join(place.read_text(encoding="utf-8") for place in places)


def test_the_formats_are_those_of_the_code() -> None:
    assert endings("pictures") == IMAGE_SUFFIXES
    assert endings("captions and tables") == {
        *FORMATS,
        *TEXT_TABLES,
        parquet.SUFFIX,
    }
    assert endings("folders") == {archives.SUFFIX}
    assert endings("streams") == {".tar", ".tar.gz", ".tgz"}


def test_a_row_is_reported_in_the_words_of_the_program() -> None:
    """Messages stand in quotes, `...` for what differs; codes are checks of `lint` or
    keys that stand in its source."""
    for *_, report in ROWS:
        for message in _QUOTED.findall(report):
            parts = [part.strip() for part in message.split("...") if part.strip()]
            assert parts and all(part in said() for part in parts), message
        for code in re.findall(r"`(\w+)`", _QUOTED.sub("", report)):
            assert code in CHECKS or code in said(), code


def test_every_check_of_files_is_in_the_table() -> None:
    reports = " ".join(report for *_, report in ROWS)
    of_files = (
        "unused",
        "unpaired",
        "repeats",
        "mask",
        "leak",
        "transparent",
        "mode",
        "no_caption",
        "syntax",
    )
    assert [
        name
        for name in (*of_files, "regularisation", "pair_shape", "several_lines")
        if f"`{name}`" not in reports
    ] == []


def test_it_is_the_only_one() -> None:
    assert PAGE.count("| what you have |") == 1
    assert len(ROWS) > 50 and {len(row) for row in ROWS} == {3}
