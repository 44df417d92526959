"""What compiled blocks keep is what the partitioner saves, for families, kinds of
network, formats and levels."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.saved_by_blocks import FAMILIES, counted, job
from toolkit.models.tiny import write_tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: tmp_path_factory.mktemp("blocks") / family for family in FAMILIES}


@pytest.mark.parametrize(
    ("family", "kind", "qtype", "level"),
    [
        ("2511", "lora", "int8", "none"),
        ("2509", "dora", "", "none"),
        ("2509", "loha", "", "cheap"),
        ("2509", "full", "", "none"),
        ("2.1", "lokr", "int8", "keep_attention"),
    ],
)
def test_the_plan_counts_what_the_partitioner_saves(
    folders: dict[str, Path], family: str, kind: str, qtype: str, level: str
) -> None:
    folder = folders[family]
    if not folder.exists():
        write_tiny_model(folder, FAMILIES[family])
    saved, planned, _ = counted(job(folder, level, kind, qtype=qtype))
    assert planned == pytest.approx(saved, rel=0.03)
