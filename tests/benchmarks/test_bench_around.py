"""What lies around the steps, in sizes that are nothing but overhead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.bench_around import PARTS, main


@pytest.mark.slow
def test_each_part_gives_its_figures(report_of) -> None:
    rows = report_of(main, "--small", "--rounds", 1)["rows"]
    assert list(rows) == list(PARTS)
    for name, row in rows.items():
        assert row["ours_ms"] > 0 and (name == "page") == ("plain_ms" not in row)
        assert row["growth"] > 0
        assert name == "page" or row["ratio"] == row["ratio_of_pairs"] > 0


def written(folder: Path) -> dict[str, Tensor]:
    """All tensors of a file or a folder's files."""
    files = sorted(folder.rglob("*.safetensors")) if folder.is_dir() else [folder]
    return {name: one for file in files for name, one in load_file(file).items()}


def change(tensors: dict[str, Tensor]) -> Tensor:
    """That of the first layer by a LoRA, whatever its keys begin with."""
    name = "transformer_blocks.0.attn.to_q.lora_"
    down, up = (
        next(one.float() for key, one in tensors.items() if f"{name}{end}" in key)
        for end in "AB"
    )
    return up @ down


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "ours", "plain", "of"),
    [
        ("convert", "ours_0.safetensors", "plain_1.safetensors", dict),
        ("merge", "ours_0/transformer", "plain_1/transformer", dict),
        ("extract", "0.safetensors", "1.safetensors", change),
    ],
)
def test_the_plain_loop_does_the_same_work(
    tmp_path: Path, part: str, ours: str, plain: str, of: Callable
) -> None:
    make, _ = PARTS[part]
    variants = make(tmp_path, 1)
    for work in (variants["ours"], variants["plain"]):
        work()
    found, expected = (of(written(tmp_path / name)) for name in (ours, plain))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.002)
