"""The quantized transformer is kept on the disk: the same bits, complete or absent, made again where it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from toolkit.config.model import ModelConfig
from toolkit.files.mapped import is_mapped
from toolkit.memory.offload import HostBlock
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


@pytest.mark.parametrize("start", ["first", "second"])
def test_waiting_blocks_stay_in_the_file_and_others_do_not(tiny_model: Path, tmp_path: Path, start: str) -> None:
    if start == "second":
        transformer(tiny_model, tmp_path, qtype="int4")
    blocks = transformer(tiny_model, tmp_path, qtype="int4", blocks_to_swap=1).transformer_blocks
    mapped = [[is_mapped(tensor) for tensor in block.state_dict().values()] for block in blocks]
    assert [all(each) for each in mapped] == [False, True]
    assert [any(each) for each in mapped] == [False, True]
    waiting = HostBlock(blocks[1], CPU)
    assert waiting.is_mapped
    assert is_mapped(waiting.memory)
    sizes = sum(-(-tensor.nbytes // 256) * 256 for tensor in blocks[1].state_dict().values())
    assert len(waiting.memory) <= sizes


def test_the_weights_of_a_table_stay_in_the_file_and_the_rest_is_one_piece(tiny_model: Path, tmp_path: Path) -> None:
    found = transformer(tiny_model, tmp_path, qtype="int4", blocks_to_swap=1, modulation_table=True)
    plain, swapped = found.transformer_blocks
    assert all(map(is_mapped, plain.img_mod.state_dict().values()))
    assert not any(map(is_mapped, plain.attn.state_dict().values()))
    table = HostBlock(swapped.img_mod, CPU)
    del swapped.img_mod, swapped.txt_mod
    rest = HostBlock(swapped, CPU)
    assert table.is_mapped and rest.is_mapped
    assert len(rest.memory) <= sum(-(-tensor.nbytes // 256) * 256 for tensor in swapped.state_dict().values())


def test_nothing_is_mapped_where_weights_take_each_others_place(tiny_model: Path, tmp_path: Path) -> None:
    section = ModelConfig(name_or_path=str(tiny_model), quantize=True, blocks_to_swap=1)
    for _ in range(2):
        keep = {"training_folder": str(tmp_path), "keep": True, "maps": False}
        found = load_base_model(section, CPU, torch.bfloat16, **keep).network_module
        assert not any(map(is_mapped, found.state_dict().values()))
