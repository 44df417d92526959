from __future__ import annotations

import io
import json
import os
import re
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from toolkit.errors import UserError
from toolkit.files import safetensors_io
from toolkit.files.safetensors_io import (
    METADATA,
    compact,
    framed,
    merge_files,
    read_header,
    save_file,
    tensor_shapes,
    tensor_sizes,
)
from toolkit.networks import adapter_settings
from toolkit.networks.adapter_settings import read_settings
from toolkit.networks.lora_formats import read_tensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3)}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_file_has_the_rights_that_any_new_file_has(
    tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        save_file(TENSORS, tmp_path / "weights.safetensors")
    finally:
        os.umask(before)
    assert (
        stat.S_IMODE((tmp_path / "weights.safetensors").stat().st_mode)
        == 0o666 & ~umask
    )


def test_the_file_holds_the_tensors_and_what_is_said_of_them(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "weights.safetensors", {"format": "pt", "step": "3"})
    with safe_open(tmp_path / "weights.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "step": "3"}
        assert list(file.keys()) == ["a"] and torch.equal(
            file.get_tensor("a"), TENSORS["a"]
        )


def test_a_disk_that_cannot_take_it_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        save_file(TENSORS, tmp_path / "not there" / "weights.safetensors")
    (tmp_path / "weights.safetensors").mkdir()
    with pytest.raises(OSError):
        save_file(TENSORS, tmp_path / "weights.safetensors")


def test_several_files_become_one_with_their_prefixes(tmp_path: Path) -> None:
    half = {"a": torch.arange(5).to(torch.bfloat16), "empty": torch.zeros(0, 3)}
    save_file(TENSORS, tmp_path / "one.safetensors", {"of": "one"})
    save_file(half, tmp_path / "two.safetensors")
    files = {tmp_path / "one.safetensors": "x.", tmp_path / "two.safetensors": "y."}
    merge_files(files, tmp_path / "whole.safetensors", {"step": "3"})
    with safe_open(tmp_path / "whole.safetensors", "pt") as found:
        assert found.metadata() == {"step": "3"}
        assert set(found.keys()) == {"x.a", "y.a", "y.empty"}
        assert torch.equal(found.get_tensor("x.a"), TENSORS["a"])
        assert (
            torch.equal(found.get_tensor("y.a"), half["a"])
            and found.get_tensor("y.a").dtype == torch.bfloat16
        )
        assert found.get_tensor("y.empty").shape == (0, 3)


def test_two_tensors_of_one_name_are_not_merged(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    files = dict.fromkeys(
        (tmp_path / "one.safetensors", tmp_path / "two.safetensors"), "x."
    )
    with pytest.raises(ValueError, match=r"two tensors would be named x\.a"):
        merge_files(files, tmp_path / "whole.safetensors", {})


def test_a_file_of_too_many_tensors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "many.safetensors"
    save_file({str(index): torch.zeros(1) for index in range(5)}, file)
    assert len(tensor_shapes(file)) == len(read_tensors(file)[0]) == 5
    monkeypatch.setattr(safetensors_io, "MOST_TENSORS", 4)
    for read in (tensor_shapes, read_tensors):
        with pytest.raises(
            UserError,
            match=r"many\.safetensors.*it holds 5 tensors, and 4 are the most",
        ):
            read(file)
    monkeypatch.setattr(adapter_settings, "MOST_TENSORS", 4)
    patterns = {str(index): 1 for index in range(5)}
    with pytest.raises(
        UserError, match="holds 5 entries in rank_pattern; 4 are the most"
    ):
        read_settings(
            {
                "lora_adapter_metadata": json.dumps(
                    {"transformer.rank_pattern": patterns}
                )
            }
        )


def test_a_header_that_safetensors_would_not_read_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(safetensors_io, "MOST_HEADER", 16)
    assert read_header(io.BytesIO(framed('{"a": 1}'))) == {"a": 1}
    with pytest.raises(
        ValueError, match="its header has 24 bytes, and 16 are the most"
    ):
        read_header(io.BytesIO(framed('{"a": 1234567890}')))


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        ("[" * 100_000, "its header is nested too deep"),
        ('{"a": ' + "9" * 5000 + "}", "has too many digits"),
    ],
)
def test_what_the_parser_of_json_does_not_take_is_said_in_words(
    header: str, fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        read_header(io.BytesIO(framed(header)))


MIXED = {
    "b": torch.arange(6.0).view(2, 3),
    "a": torch.ones(4, dtype=torch.bfloat16),
    "scalar": torch.tensor(2.0),
}


def test_a_header_that_is_read_and_written_again_is_one_the_library_reads() -> None:
    file = io.BytesIO(save(MIXED, {"z": "1", "ä": "2"}))
    header = read_header(file)
    data = file.read()
    again = framed(compact(header))
    assert len(again) % 8 == 0
    read = load(again + data)
    assert read.keys() == MIXED.keys() and all(
        torch.equal(read[name], MIXED[name]) for name in MIXED
    )
    assert list(
        json.loads(compact({METADATA: {"z": "1", "b": "2"}, "x": {}}))[METADATA]
    ) == ["b", "z"]


def test_weights_are_counted_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(save(MIXED, {"format": "pt"}))
    assert tensor_sizes(tmp_path / "x.safetensors") == {"b": 6, "a": 4, "scalar": 1}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        b"\xff" * 20,
        framed("{}")[:-1],
        framed("[]"),
        framed('{"a": {}}'),
        framed('{"a": 1}'),
        framed("{"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        UserError,
        match=rf"{re.escape(str(path))}: damaged weights \(.*Copy or download the model again",
    ):
        tensor_sizes(path)
