from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from toolkit.safetensors_io import save_file

TENSORS = {"a": torch.arange(6.0).reshape(2, 3)}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_file_has_the_rights_that_any_new_file_has(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        save_file(TENSORS, tmp_path / "weights.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "weights.safetensors").stat().st_mode) == 0o666 & ~umask


def test_the_file_holds_the_tensors_and_what_is_said_of_them(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "weights.safetensors", {"format": "pt", "step": "3"})
    with safe_open(tmp_path / "weights.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "step": "3"}
        assert list(file.keys()) == ["a"] and torch.equal(file.get_tensor("a"), TENSORS["a"])


def test_a_disk_that_cannot_take_it_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        save_file(TENSORS, tmp_path / "not there" / "weights.safetensors")
    (tmp_path / "weights.safetensors").mkdir()
    with pytest.raises(OSError):
        save_file(TENSORS, tmp_path / "weights.safetensors")
