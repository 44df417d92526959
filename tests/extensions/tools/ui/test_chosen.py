"""Which file and which sample a run's page begins with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from extensions.tools.ui.chosen import chosen_file
from toolkit.files.safetensors_io import tensor_shapes


def save(path: Path, *keys: str) -> None:
    """A safetensors file with a number of each name."""
    header: dict[str, Any] = {
        key: {"dtype": "F32", "shape": [], "data_offsets": [4 * i, 4 * i + 4]}
        for i, key in enumerate(keys)
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4 * len(keys)))
    assert list(tensor_shapes(path)) == list(keys)


def test_the_file_is_the_recommended_one_or_the_last(
    make_run: Callable[..., Path],
) -> None:
    folder = make_run("one")
    shutil.copy(folder / "one.safetensors", folder / "one_000000005.safetensors")
    last = chosen_file(folder)
    assert last is not None and (last.name, last.why, last.size) == (
        "one.safetensors",
        "last",
        100,
    )
    (folder / "best.json").write_text(
        json.dumps({"recommended": "one_000000005.safetensors"})
    )
    best = chosen_file(folder)
    assert best is not None and (best.name, best.why, best.step) == (
        "one_000000005.safetensors",
        "recommended",
        5,
    )
    (folder / "best.json").write_text(
        json.dumps({"recommended": None, "files": [{"file": "one.safetensors"}]})
    )
    unknown = chosen_file(folder)
    assert unknown is not None and (unknown.name, unknown.why) == (
        "one.safetensors",
        "last_of_unknown",
    )
    for damaged in (
        '{"recommended": "../secret"}',
        '{"recommended": ["x"]}',
        "[]",
        '{"recommended": "run.json"}',
    ):
        (folder / "best.json").write_text(damaged)
        found = chosen_file(folder)
        assert found is not None and found.why == "last"


@pytest.mark.parametrize(
    ("key", "programs"),
    [
        ("diffusion_model.a.lora_B.weight", "lora"),
        ("a.lokr_w1", "other"),
        ("a.dora_scale", "other"),
    ],
)
def test_the_programs_are_those_of_its_kind(
    make_run: Callable[..., Path], key: str, programs: str
) -> None:
    folder = make_run("one")
    save(folder / "one.safetensors", key)
    found = chosen_file(folder)
    assert found is not None and found.programs == programs


def test_a_file_of_the_small_model_is_for_that_model_alone(
    make_run: Callable[..., Path],
) -> None:
    folder = make_run("one")
    save_file(
        {"a.lora_B.weight": torch.zeros(1)},
        folder / "one.safetensors",
        {"base_model": "tiny_mascots"},
    )
    found = chosen_file(folder)
    assert found is not None and found.programs == "small"


def test_a_damaged_file_is_of_another_kind(make_run: Callable[..., Path]) -> None:
    folder = make_run("one")
    (folder / "one.safetensors").write_bytes(b"cut")
    found = chosen_file(folder)
    assert found is not None and found.programs == "other"


def test_a_run_without_a_file_or_a_sample_has_none(
    make_run: Callable[..., Path],
) -> None:
    folder = make_run("one", sampled=())
    (folder / "one.safetensors").unlink()
    assert chosen_file(folder) is None
