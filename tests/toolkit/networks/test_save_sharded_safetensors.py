"""Model weights in shards: what diffusers reads, one tensor in memory at a time."""

from __future__ import annotations

import json
import weakref
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from toolkit.errors import RunError
from toolkit.networks import save
from toolkit.networks.save import STEM, weights_digest, write_shards
from toolkit.system.device import to_cpu_copies

WEIGHTS = {
    "c.weight": torch.linspace(-1, 1, 12).reshape(3, 4),
    "a.bias": torch.tensor(4.0),
    "b.ü": torch.linspace(0, 1, 7).reshape(7, 1).T,  # not contiguous
    "empty": torch.zeros(0, 3),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_one_file_holds_what_safetensors_reads(tmp_path: Path, dtype: str) -> None:
    write_shards(tmp_path, WEIGHTS, dtype, {"who": "ä"})
    [path] = tmp_path.iterdir()
    assert path.name == f"{STEM}.safetensors"
    stored = load_file(path)
    assert stored.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert stored[name].dtype == getattr(torch, dtype) and torch.equal(
            stored[name], tensor.to(stored[name].dtype)
        )
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "who": "ä",
            "sha256": weights_digest(stored),
        }


def test_the_tensors_lie_as_safetensors_itself_lays_them(tmp_path: Path) -> None:
    tensors = to_cpu_copies(
        {name: tensor for name, tensor in WEIGHTS.items() if tensor.numel()}, "bfloat16"
    )
    (tmp_path / "ours").mkdir()
    write_shards(tmp_path / "ours", tensors, "bfloat16", {})
    save_file(tensors, tmp_path / "theirs")

    def body(path: Path) -> bytes:
        data = path.read_bytes()
        return data[8 + int.from_bytes(data[:8], "little") :]

    assert body(tmp_path / "ours" / f"{STEM}.safetensors") == body(tmp_path / "theirs")


def test_shards_are_filled_in_the_order_of_names_up_to_their_size(
    tmp_path: Path,
) -> None:
    tensors = {
        name: torch.full((size,), float(size))
        for name, size in [("a", 10), ("b", 5), ("c", 6), ("d", 40)]
    }
    write_shards(tmp_path, tensors, "float32", {}, shard_bytes=60)
    index = json.loads((tmp_path / f"{STEM}.safetensors.index.json").read_text())
    first, second, third = (
        f"{STEM}-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)
    )
    assert index == {
        "metadata": {"total_size": 4 * 61},
        "weight_map": {"a": first, "b": first, "c": second, "d": third},
    }
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(float("nan"), "float32"), (float("-inf"), "bfloat16"), (1e6, "float16")],
)
def test_a_weight_that_is_not_finite_in_the_file_is_named(
    tmp_path: Path, value: float, dtype: str
) -> None:
    with pytest.raises(RunError, match=r"a\.bias is not finite"):
        write_shards(
            tmp_path, {**WEIGHTS, "a.bias": torch.tensor([1.0, value])}, dtype, {}
        )


def test_a_shard_that_reads_back_differently_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, calls = save.bytes_of, count()

    def lost(tensor: torch.Tensor) -> memoryview | bytes:
        """What is written of the first tensor, after its digest, is zeros."""
        return bytes(len(right(tensor))) if next(calls) == 1 else right(tensor)

    monkeypatch.setattr(save, "bytes_of", lost)
    with pytest.raises(RunError, match="reads back differently"):
        write_shards(tmp_path, WEIGHTS, "float32", {})


def test_only_the_tensor_at_its_turn_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref] = []
    most = 0
    right = save.is_finite

    def watched(tensor: torch.Tensor) -> bool:
        nonlocal most
        alive.append(weakref.ref(tensor))
        most = max(most, sum(ref() is not None for ref in alive))
        return right(tensor)

    monkeypatch.setattr(save, "is_finite", watched)
    tensors = {str(index): torch.ones(8) for index in range(6)}
    write_shards(tmp_path, tensors, "bfloat16", {})
    assert (len(alive), most) == (6, 1)
