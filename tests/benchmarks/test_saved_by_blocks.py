"""What compiled blocks keep is what the partitioner saves, for each family, kind of network, format and level."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.saved_by_blocks import FAMILIES, counted, job
from toolkit.models.tiny import write_tiny_model

slow = pytest.mark.slow

LEVELS = ("none", "cheap", "keep_attention", "full")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: tmp_path_factory.mktemp("blocks") / family for family in FAMILIES}


@pytest.mark.parametrize(
    ("family", "kind", "qtype", "level"),
    [
        ("2509", "lora", "", "full"),
        *(pytest.param("2509", "lora", "", level, marks=slow) for level in LEVELS[:-1]),
        *(
            pytest.param("2509", "lora", qtype, level, marks=slow)
            for qtype in ("int8", "int4", "fp8_scaled")
            for level in LEVELS
        ),
        *(
            pytest.param("2509", kind, "", level, marks=slow)
            for kind in ("dora", "loha", "lokr", "full")
            for level in LEVELS
        ),
        *(pytest.param(family, "lora", "", "none", marks=slow) for family in ("2511", "2.1")),
        pytest.param("2.1", "lora", "", "cheap", marks=slow),
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
