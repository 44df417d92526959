"""The times that the guides quote are those of the plans of `run.py new`."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import ceil
from pathlib import Path

import pytest
from PIL import Image

from extensions.tools.shared.examples import MODELS, written_job
from jobs.dry_run import plan_job
from tests.conftest import ROOT
from toolkit.config import load_job
from toolkit.extension import discover
from toolkit.memory.estimate import GB
from toolkit.plan import memory_plan
from toolkit.plan.cards import assumed_card
from toolkit.plan.outlook import Outlook

UNITS = {"min": 60, "h": 3600}
QUOTED = re.compile(r"([\d.]+) (min|h) (?:on an |\()(H100|RTX \d{4})")


@pytest.fixture
def planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], Outlook]:
    """The outlook of the job that `run.py new --gpu` writes, on the card that it names:
    2000 steps at 1024 x 1024."""
    monkeypatch.chdir(tmp_path)
    # not the memory of this machine: with this all waiting blocks are pinned
    monkeypatch.setattr(memory_plan, "free_host_memory", lambda: 64 * GB)
    (folder := tmp_path / "pictures").mkdir()
    for name in "abcdefgh":
        Image.new("RGB", (1100, 1100)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a photo of {name}", encoding="utf-8")

    def plan(gpu: int) -> Outlook:
        job = tmp_path / "job.yaml"
        job.write_text(
            written_job("zuzu", str(folder), "zuzu", "", gpu), encoding="utf-8"
        )
        (process,) = plan_job(
            load_job(str(job), discover().find_config), card=assumed_card(gpu).name
        ).processes
        assert process.outlook
        return process.outlook

    return plan


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "row", "before"),
    [
        ("docs/first_character.md", "| training |", 0),
        ("README.md", "| time |", 0),
        ("README.md", "| rented |", 58 * 8),
    ],
)
def test_the_quoted_times_are_those_of_the_plan(
    page: str, row: str, before: float, planned: Callable[[int], Outlook]
) -> None:
    """before: seconds of the download, 58 GB at 1 Gbit/s."""
    text = (ROOT / page).read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith(row)]
    quoted = {
        name: float(number) * UNITS[unit] for number, unit, name in QUOTED.findall(line)
    }
    sizes = {assumed_card(gpu).name: gpu for gpu in MODELS[0].cards}
    assert len(quoted) >= 2
    times = {name: planned(sizes[name]).time for name in quoted}
    found = {name: before + time.seconds for name, time in times.items() if time}
    assert found == pytest.approx(quoted, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/first_character.md", "README.md"])
def test_the_quoted_disk_space_is_that_of_the_plan(
    page: str, planned: Callable[[int], Outlook]
) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("| disk |")]
    pattern = r"(\d+) GB per run, (\d+) GB \(int4\) or (\d+) GB \(int8\)"
    found = re.search(pattern, line)
    int4, int8 = planned(24).disk, planned(48).disk
    assert found and int4 and int8 and int4.needed_bytes == int8.needed_bytes
    figures = (int4.needed_bytes, int4.kept_bytes, int8.kept_bytes)
    assert [*map(int, found.groups())] == [ceil(size / 1e9) for size in figures]


def test_the_line_of_the_page_is_one_of_a_plan(
    planned: Callable[[int], Outlook],
) -> None:
    page = (ROOT / "docs" / "times.md").read_text(encoding="utf-8")
    (quoted,) = re.findall(r"(?m)^  (time: .*)$", page)
    time, number = planned(12).time, re.compile(r"\d+(?:\.\d+)?(?= )")
    assert time
    line = time.line(until_the_data_ends=False)
    assert number.sub("N", line) == number.sub("N", quoted)
    numbers = [
        [float(each) for each in number.findall(text)] for text in (line, quoted)
    ]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.1)
