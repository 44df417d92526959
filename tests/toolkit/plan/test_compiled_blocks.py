"""What compiled blocks keep is what the partitioner saves, for families, kinds of
network, formats and levels."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.saved_by_blocks import counted, job
from toolkit.models.tiny import TinySpec, write_tiny_model

HEADS = 8
FAMILIES = {
    "2509": TinySpec(heads=HEADS),
    "2511": TinySpec(heads=HEADS, zero_cond_t=True),
    "2.1": TinySpec(heads=HEADS, arch="qwen_image_2"),
}


@pytest.mark.slow
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
    tmp_path: Path, family: str, kind: str, qtype: str, level: str
) -> None:
    write_tiny_model(tmp_path, FAMILIES[family])
    saved, planned, _ = counted(job(tmp_path, level, kind, qtype=qtype))
    assert planned == pytest.approx(saved, rel=0.03)
