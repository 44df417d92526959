"""The quantized transformer is kept on the disk: the same bits, complete or absent, made again where it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from toolkit.config.model import ModelConfig
from toolkit.models import kept
from toolkit.models.kept import kept_entries
from toolkit.number_types import QTYPES
from toolkit.train.base_model import load_base_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is free on the disk of the tests."""
    monkeypatch.setattr(kept, "LEAST_FREE", 0)


def transformer(model: Path, folder: Path, **keys: object) -> torch.nn.Module:
    section = ModelConfig(name_or_path=str(model), quantize=True, **keys)
    return load_base_model(section, CPU, torch.bfloat16, training_folder=str(folder), keep=True).network_module


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name
    for (name, module), (_, twin) in zip(one.named_modules(), other.named_modules(), strict=True):
        assert type(module) is type(twin), name
        own = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        for key in own if module.__module__ == "toolkit.memory.quantization" else ():
            assert getattr(twin, key) == own[key], (name, key)


@pytest.mark.parametrize("qtype", QTYPES)
def test_a_second_start_has_the_bits_of_the_first(tiny_model: Path, tmp_path: Path, qtype: str) -> None:
    fresh = transformer(tiny_model, tmp_path, qtype=qtype, keep_quantized=False)
    assert not kept_entries(tmp_path / "_cache")
    first = transformer(tiny_model, tmp_path, qtype=qtype)
    (entry,) = kept_entries(tmp_path / "_cache")
    second = transformer(tiny_model, tmp_path, qtype=qtype)
    assert_same(fresh, first)
    assert_same(fresh, second)
    assert [one.folder for one in kept_entries(tmp_path / "_cache")] == [entry.folder]


def test_the_published_weights_are_not_read_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer(tiny_model, tmp_path)
    monkeypatch.setattr("toolkit.models.loading.ShardReader", lambda *_: pytest.fail("the weights are read"))
    transformer(tiny_model, tmp_path)
