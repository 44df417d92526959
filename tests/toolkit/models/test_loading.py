"""What no family does by itself: shards by name, a module filled from them, what
identifies a part."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file

from toolkit.errors import RunError, UserError
from toolkit.models.loading import (
    WEIGHTS,
    ShardReader,
    fill,
    weights_hash,
)


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may damage."""
    return shutil.copytree(tiny_model, tmp_path / "model")


# ---------------------------------------------------------------- weights


def write_part(folder: Path) -> dict[str, torch.Tensor]:
    """Two shards of a linear layer, "a.weight" and "a.bias"."""
    weights = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}
    for number, (name, tensor) in enumerate(weights.items()):
        save_file({name: tensor}, folder / f"{number}.safetensors")
    places = {name: f"{number}.safetensors" for number, name in enumerate(weights)}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))
    return weights


def test_a_meta_module_is_filled_from_shards_in_the_asked_dtype(tmp_path: Path) -> None:
    weights = write_part(tmp_path)
    with init_empty_weights():
        layer = torch.nn.Linear(3, 2)
    with ExitStack() as stack:
        reader = ShardReader(tmp_path, stack)
        fill(layer, reader, "a.", torch.bfloat16)
        assert not reader.names
    assert torch.equal(layer.weight, weights["a.weight"].bfloat16())
    assert torch.equal(layer.bias, weights["a.bias"].bfloat16())


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", r"index\.json: not readable \("),
        ("[]", r"index\.json: holds no JSON object"),
        ("{}", r"index\.json: has no 'weight_map'"),
        (
            '{"weight_map": {"a.bias": "gone.safetensors"}}',
            r"missing weight files: gone\.safetensors",
        ),
        (
            '{"weight_map": {"a.bias": "damaged.safetensors"}}',
            r"damaged\.safetensors: damaged \(",
        ),
    ],
)
def test_what_is_damaged_or_absent_is_named(
    tmp_path: Path, index: str, message: str
) -> None:
    write_part(tmp_path)
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / f"{WEIGHTS}.index.json").write_text(index)
    with ExitStack() as stack, pytest.raises((RunError, UserError), match=message):
        ShardReader(tmp_path, stack)


# ---------------------------------------------------------------- identity of a part


@pytest.mark.parametrize(
    ("parts", "file"),
    [
        (["vae"], "vae/diffusion_pytorch_model.safetensors"),
        (["vae"], "vae/config.json"),
        (["text_encoder", "tokenizer", "processor"], "text_encoder/model.safetensors"),
        (["text_encoder", "tokenizer", "processor"], "tokenizer/merges.txt"),
        (
            ["text_encoder", "tokenizer", "processor"],
            "processor/preprocessor_config.json",
        ),
    ],
)
def test_one_byte_changes_the_identity(copy: Path, parts: list[str], file: str) -> None:
    before = weights_hash(copy, parts)
    path = copy / file
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    assert weights_hash(copy, parts) != before


def test_file_times_and_the_folder_do_not_change_the_identity(
    tiny_model: Path, copy: Path
) -> None:
    before = weights_hash(tiny_model, ["vae"])
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    assert weights_hash(copy, ["vae"]) == before


def test_a_renamed_file_changes_the_identity(copy: Path) -> None:
    before = weights_hash(copy, ["vae"])
    (copy / "vae" / "config.json").rename(copy / "vae" / "config2.json")
    assert weights_hash(copy, ["vae"]) != before
