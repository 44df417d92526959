"""The header's one reader and writer, against the library."""

import json
import re
from io import BytesIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save, save_file

from toolkit.errors import UserError
from toolkit.files.safetensors_io import (
    METADATA,
    compact,
    framed,
    read_header,
    tensor_sizes,
)

TENSORS = {
    "b": torch.arange(6.0).view(2, 3),
    "a": torch.ones(4, dtype=torch.bfloat16),
    "scalar": torch.tensor(2.0),
}


def test_a_header_that_is_read_and_written_again_is_one_the_library_reads() -> None:
    file = BytesIO(save(TENSORS, {"z": "1", "ä": "2"}))
    header = read_header(file)
    data = file.read()
    again = framed(compact(header))
    assert len(again) % 8 == 0
    read = load(again + data)
    assert read.keys() == TENSORS.keys() and all(
        torch.equal(read[name], TENSORS[name]) for name in TENSORS
    )
    assert list(
        json.loads(compact({METADATA: {"z": "1", "b": "2"}, "x": {}}))[METADATA]
    ) == ["b", "z"]


def test_weights_are_counted_by_name(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", {"format": "pt"})
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
