"""docs/troubleshooting.md quotes what the program really prints: each quote is in the
source, and the wrong job of an entry prints the message that the entry shows."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from jobs.dry_run import plan_job
from tests.conftest import ROOT
from tests.docs.pages import PAGES, PHOTOS, Block, fenced, whole_job, wrong_and_right
from tests.test_architecture import source, tracked
from toolkit.config import load_job
from toolkit.errors import UserError
from toolkit.extension import discover

NAME = "docs/troubleshooting.md"
PAGE = (ROOT / NAME).read_text(encoding="utf-8")
OF_OTHERS = {
    "No matching distribution found for diffusers": "pip",
    "Killed": "the shell",
    "Unrecognized key ... in Accelerator allocator config": "PyTorch",
    "Fatal Python error: Bus error": "Python",
    "lora key not loaded": "ComfyUI",
    "Qwen2VLVideoProcessor requires the Torchvision library": "transformers",
}
"""Quotes that are not the program's -> whose they are."""

OPTIONS = {"--allow-change", "device cpu"}

PLACE = re.compile(r"^\S+?:\d+:\d+: ")
"""File, line and column: the job of a test is the whole example, and has other
lines."""


class Entry(NamedTuple):
    """One entry of the page."""

    heading: str
    printed: tuple[str, ...]
    """The lines that the program prints."""

    pairs: tuple[tuple[Block, Block], ...]
    """A wrong and a right block each."""


def entries() -> list[Entry]:
    """The parts of the page below each heading of the third level."""
    found = []
    for part in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        shown = [
            block.text.splitlines()
            for block in fenced(NAME, text)
            if block.language == "text"
        ]
        found.append(
            Entry(
                heading,
                tuple(line for lines in shown for line in lines),
                tuple(wrong_and_right(text)),
            )
        )
    return found


def quotes() -> list[str]:
    """The code in headings of the third level, and at the beginning of items of a
    list."""
    headings = re.findall(r"^### .*", PAGE, re.MULTILINE)
    items = re.findall(r"^- (`[^`]+`)$", PAGE, re.MULTILINE)
    return [
        quote
        for line in (*headings, *items)
        for quote in re.findall(r"`([^`]+)`", line)
    ]


@cache
def messages() -> list[str]:
    """Every text of the program's source; what an f-string fills in is `...`."""
    found = []
    for name in tracked("toolkit", "extensions", "jobs", "run.py"):
        for node in ast.walk(ast.parse(source(name))):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "..."
                    for part in node.values
                )
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def with_gaps(quote: str) -> re.Pattern[str]:
    """The pattern of a quote, in which `...` stands for anything."""
    return re.compile(
        ".*".join(map(re.escape, re.split(r"\s*\.\.\.\s*", quote))), re.DOTALL
    )


def is_printed(quote: str) -> bool:
    """Whether one message holds all parts of a quote, in their order."""
    return any(map(with_gaps(quote).search, messages()))


def test_quoted_messages_are_in_the_program() -> None:
    found = set(quotes())
    assert len(found) > 45 and found >= {*OF_OTHERS, *OPTIONS}
    own = found - {*OF_OTHERS} - OPTIONS
    assert [quote for quote in sorted(own) if not is_printed(quote)] == []
    assert not is_printed("holds ... no pictures whatsoever")


def put_images(place: Path) -> None:
    """The folders of images that the entries of the page are about."""
    photos = PHOTOS / "40_photo"
    coffee = (photos / "coffee.jpg").read_bytes()
    shutil.copytree(PHOTOS, place / "config" / "examples" / "photos")
    datasets = place / "datasets"
    for name in (
        "my_char",
        "raw/2026/portraits",
        "people/40_portraits",
        "damaged",
        "full_body",
        "portraits",
    ):
        shutil.copytree(photos, datasets / name)
    shutil.copytree(
        photos, datasets / "no_captions", ignore=shutil.ignore_patterns("*.txt")
    )
    files = {
        "people/coffee.jpg": coffee,
        "people/coffee.txt": b"a cup",
        "damaged/portrait.jpg": coffee[:3000],
        "damaged/portrait.txt": b"a portrait",
        "latin/coffee.jpg": coffee,
        "latin/coffee.txt": "café".encode("latin-1"),
        "twice/coffee.jpg": coffee,
        "twice/coffee.png": coffee,
        **{f"after/0{number}.jpg": coffee for number in (1, 2)},
        **{f"after/0{number}.txt": b"put a crown on it" for number in (1, 2)},
        "before/01.jpg": coffee,
    }
    for name, data in files.items():
        (datasets / name).parent.mkdir(parents=True, exist_ok=True)
        (datasets / name).write_bytes(data)


found_here = cache(discover)


def answer(job: str) -> list[str]:
    """The errors of a job, or the lines of its plan, without places in the job file."""
    path = Path("config", "my_char.yaml")
    path.write_text(job, encoding="utf-8")
    try:
        plan = plan_job(load_job(path, found_here().find_config))
    except UserError as error:
        lines = str(error).splitlines()
    else:
        lines = [
            line for process in plan.processes for line in process.render().splitlines()
        ]
    return [PLACE.sub("", line.strip()) for line in lines]


def job_of(block: Block) -> str:
    """The block's keys in the example; a block that is not YAML is the whole file."""
    try:
        job: dict[str, Any] = whole_job(block)
    except yaml.YAMLError:
        return block.text
    return yaml.safe_dump(job, sort_keys=False)


def seen(line: str, lines: list[str]) -> bool:
    """Whether a printed line fits the page's, in which `...` stands for anything."""
    return any(map(with_gaps(PLACE.sub("", line)).fullmatch, lines))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of all jobs of the page, which are planned and not run."""
    folder = tmp_path_factory.mktemp("page")
    put_images(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.delenv("RUNS", raising=False)
        yield folder


SHOWN = [entry for entry in entries() if entry.printed and entry.pairs]


@pytest.mark.parametrize("entry", SHOWN, ids=lambda entry: entry.heading)
def test_the_wrong_job_prints_it_and_the_right_one_does_not(
    entry: Entry, place: Path
) -> None:
    wrong, right = entry.pairs[0]
    told = answer(job_of(wrong))
    assert [line for line in entry.printed if not seen(line, told)] == [], told
    told = answer(job_of(right))
    assert [line for line in entry.printed if seen(line, told)] == []
    assert any("samples per epoch" in line for line in told), told
    for wrong, _ in entry.pairs[1:]:
        told = answer(job_of(wrong))
        quoted = [with_gaps(quote) for quote in re.findall(r"`([^`]+)`", entry.heading)]
        assert any(quote.search(line) for quote in quoted for line in told), told


FILES = {
    "`is not UTF-8 text`": "datasets/latin",
    "`images share the stem ...`": "datasets/twice",
    "`truncated or damaged`": "datasets/damaged",
}
"""Entries whose remedy is a change of the files -> the folder."""


@pytest.mark.parametrize("heading", FILES)
def test_a_message_about_files_is_printed(heading: str, place: Path) -> None:
    (entry,) = (entry for entry in entries() if entry.heading == heading)
    (line,) = entry.printed
    assert seen(
        line,
        answer(
            job_of(Block(NAME, 1, "yaml", f"datasets: [folder_path: {FILES[heading]}]"))
        ),
    )


def test_each_shown_message_is_tried() -> None:
    assert {entry.heading for entry in entries() if entry.printed} == {
        entry.heading for entry in SHOWN
    } | {*FILES}
    assert len(SHOWN) >= 10


NOT_HERE = {
    "`is quantized by ..., which is not read`": "its model is another program's",
    "`its name does not say which. Give model.arch`": "its model is a file of 20 GB",
}
"""Entries whose jobs need files that a test does not have -> which."""

OF_RESULTS = [
    pytest.param(pair, id=entry.heading)
    for entry in entries()
    for pair in entry.pairs
    if not entry.printed
    and entry.heading not in NOT_HERE
    and pair[0].language == "yaml"
]


@pytest.mark.parametrize("pair", OF_RESULTS)
def test_jobs_that_differ_in_their_result_are_both_planned(
    pair: tuple[Block, Block], place: Path
) -> None:
    """What is wrong with the first is seen in the images only."""
    second = place / "datasets" / "before" / "02.jpg"
    shutil.copy(second.with_name("01.jpg"), second)
    try:
        told = [answer(job_of(block)) for block in pair]
    finally:
        second.unlink()
    for block in told:
        assert any("samples per epoch" in line for line in block), block


def test_pairs_are_on_this_page_alone() -> None:
    """No other test runs them (`tests.docs.pages.blocks`)."""
    with_pairs = [
        page
        for page in PAGES
        if wrong_and_right((ROOT / page).read_text(encoding="utf-8"))
    ]
    assert with_pairs == [NAME]
