"""The guides' tables of GPUs: one answer in all of them, and that of the jobs which
`run.py new` writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from docs.generate import WITH_TABLES
from docs.gpu_table import HEAD, MARKED, PEAK, with_tables
from extensions.tools.shared.examples import written_job
from jobs.dry_run import plan_job
from tests.conftest import ROOT
from toolkit.config import load_job
from toolkit.extension import discover

TABLES = [
    (found[2], found[3])
    for name in WITH_TABLES
    for found in MARKED.finditer((ROOT / "docs" / name).read_text(encoding="utf-8"))
]
ROWS = sorted(
    {
        (model, int(row[1]), row[0], row[2])
        for model, table in TABLES
        for row in PEAK.finditer(table)
    }
)
"""Model, GB of the GPU, the row, its planned peak."""


def test_the_guide_has_a_table_of_each_model() -> None:
    """A second answer to a row would be another row."""
    assert {model for model, _ in TABLES} == {
        "Qwen/Qwen-Image-Edit-2509",
        "Qwen/Qwen-Image-2.1",
    } and len(TABLES) == 2
    assert len(ROWS) == len({(model, least) for model, least, *_ in ROWS}) == 14


@pytest.mark.parametrize(
    ("model", "least", "row", "peak"), ROWS, ids=[f"{m}-{gb}" for m, gb, *_ in ROWS]
)
def test_a_row_is_the_job_of_new_and_its_plan(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    least: int,
    row: str,
    peak: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    side = re.search(r"images of (\d+) x \1 \|", HEAD)
    assert side, "the table says which images it is of"
    (tmp_path / "images").mkdir()
    Image.new("RGB", (int(side[1]),) * 2).save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "a.txt").write_text("zuzu drinks a coffee in a garden")
    (tmp_path / "job.yaml").write_text(
        written_job("zuzu", "images", "zuzu", model, least), encoding="utf-8"
    )
    job = load_job("job.yaml", discover().find_config)
    section, level = (
        job.processes[0].section.model,
        job.processes[0].section.train.gradient_checkpointing,
    )
    said = dict(re.findall(r"`(\w+): (\w+)`", row))
    written = {"qtype": section.qtype} if section.quantize else {"quantize": "false"}
    written |= (
        {"blocks_to_swap": str(section.blocks_to_swap)}
        if section.blocks_to_swap
        else {}
    )
    assert said == written | (
        {"gradient_checkpointing": level} if level != "auto" else {}
    )
    memory = plan_job(job, card=str(least)).processes[0].memory
    assert memory and f"{memory.peak_bytes / 1e9:.1f}" == peak


def test_a_row_that_a_page_lacks_is_written_without_a_peak() -> None:
    """As a new GPU in the table of `new` would be, until somebody enters its figure."""
    mark = "<!-- GPUs of Qwen/Qwen-Image-2.1 -->\n{}<!-- end of the table -->\n"
    found = with_tables(mark.format("| 8 GB | x | 6.8 GB |\n"))
    assert (
        "`blocks_to_swap: 30` | | 6.8 GB |" in found
        and "| 12 GB | `qtype: int4` | | 0.0 GB |" in found
    )
