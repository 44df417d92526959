"""The meaning of other programs' files, against the numbers those programs computed (tests/golden/lora_files)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from toolkit.errors import UserError
from toolkit.models.qwen_edit.estimate import block_linears
from toolkit.networks.formats import read_network_file

GOLDEN = Path(__file__).parents[2] / "golden" / "lora_files"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))["files"]
MODULES = [f"transformer_blocks.{index}.{name}" for index in range(2) for name in block_linears(1)]
TO_Q = "transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_means_what_its_writer_computed(name: str) -> None:
    changes = read_network_file(GOLDEN / name, MODULES)
    expected = EXPECTED[name]["modules"]
    assert changes.keys() == expected.keys()
    for module, numbers in expected.items():
        delta_OI = changes[module].delta()
        assert list(delta_OI.shape) == numbers["shape"]
        assert float(delta_OI.norm()) == pytest.approx(numbers["frobenius"], rel=1e-5)
        tolerance = 1e-4 * numbers["frobenius"] * delta_OI.numel() ** 0.5
        assert float(delta_OI.sum()) == pytest.approx(numbers["sum"], abs=tolerance)


@pytest.mark.parametrize(
    "stem",
    [
        f"diffusion_model.{TO_Q}",
        f"transformer.{TO_Q}",
        f"base_model.model.{TO_Q}",
        f"lora_unet_{TO_Q.replace('.', '_')}",
        f"lycoris_{TO_Q.replace('.', '_')}",
        TO_Q,
    ],
)
@pytest.mark.parametrize(
    "suffixes", [("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora_A.default", "lora_B.default")]
)
def test_every_prefix_and_suffix_names_the_same_layer(tmp_path: Path, stem: str, suffixes: tuple[str, str]) -> None:
    down, up = torch.randn(2, 6), torch.randn(5, 2)
    tensors = {
        f"{stem}.{suffixes[0]}.weight": down,
        f"{stem}.{suffixes[1]}.weight": up,
        f"{stem}.alpha": torch.tensor(1.0),
    }
    changes = read_network_file(_written(tmp_path, tensors), MODULES)
    assert changes.keys() == {TO_Q}
    torch.testing.assert_close(changes[TO_Q].delta(), 0.5 * up @ down)


def test_without_alpha_the_scale_is_one(tmp_path: Path) -> None:
    down, up = torch.randn(2, 6), torch.randn(5, 2)
    path = _written(tmp_path, {f"{TO_Q}.lora_A.weight": down, f"{TO_Q}.lora_B.weight": up})
    torch.testing.assert_close(read_network_file(path, MODULES)[TO_Q].delta(), up @ down)


def test_header_metadata_scales_a_file_without_alpha(tmp_path: Path) -> None:
    down, up = torch.randn(2, 6), torch.randn(5, 2)
    header = {"transformer.r": 2, "transformer.lora_alpha": 8, "transformer.rank_pattern": {}}
    path = tmp_path / "x.safetensors"
    save_file(
        {f"transformer.{TO_Q}.lora_A.weight": down, f"transformer.{TO_Q}.lora_B.weight": up},
        path,
        metadata={"lora_adapter_metadata": json.dumps(header)},
    )
    torch.testing.assert_close(read_network_file(path, MODULES)[TO_Q].delta(), 4 * up @ down)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{TO_Q}.lora_A.weight": torch.ones(2, 6)}, "lacks a matrix"),
        ({"text_encoder.layer.lora_A.weight": torch.ones(2, 6)}, "text_encoder.layer"),
        ({f"{TO_Q}.dora_scale": torch.ones(1, 6)}, "dora_scale"),
        ({f"{TO_Q}.lora_A.weight": torch.full((2, 6), torch.nan), f"{TO_Q}.lora_B.weight": torch.ones(5, 2)}, "finite"),
        (
            {
                f"{TO_Q}.lora_A.weight": torch.ones(2, 6),
                f"{TO_Q}.lora_B.weight": torch.ones(5, 2),
                f"{TO_Q}.alpha": torch.tensor(torch.inf),
            },
            "alpha",
        ),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_network_file(_written(tmp_path, tensors), MODULES)


@pytest.mark.parametrize("content", [b"", b"not a safetensors file at all"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_network_file(path, MODULES)


def _written(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path = folder / "x.safetensors"
    save_file(tensors, path)
    return path
