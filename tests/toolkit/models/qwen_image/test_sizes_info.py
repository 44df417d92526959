"""Sizes of all parts from config files and headers: those of the loaded model, and of the published one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from toolkit.errors import UserError
from toolkit.models.qwen_image import loading
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.qwen_image.loading import TEXT_ENCODER
from toolkit.models.vl_prompts import load_text_model


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_encoders_have_as_many_weights_as_are_loaded(tiny_model: Path) -> None:
    facts = FAMILY.footprint(tiny_model)
    text = load_text_model(tiny_model / "text_encoder", TEXT_ENCODER, torch.float32)
    linears = [m for m in text.language_model.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert facts.text.linear_params == sum(m.weight.numel() for m in linears)
    assert facts.text.linear_params + facts.text.other_params == count(text)
    assert facts.vae.other_params == count(loading.load_vae(tiny_model / "vae", torch.float32))


def test_the_blocks_have_as_many_weights_as_are_stored(tiny_model: Path) -> None:
    facts = FAMILY.footprint(tiny_model)
    assert facts.linear_params + facts.other_params == sum(FAMILY.modules(tiny_model).values())
    # 12 numbers per channel and block come from img_mod and txt_mod.
    assert facts.row_numbers == 12 * facts.width * facts.blocks
    assert len(facts.modulation_layers) == 2 * facts.blocks


def test_without_files_the_sizes_are_the_published_ones(tmp_path: Path) -> None:
    """20.43 B weights, of which 6.8 B a table can stand for; 8.29 B of the text encoder with its head."""
    facts = FAMILY.footprint(tmp_path / "none")
    assert round((facts.linear_params + facts.other_params) / 1e9, 2) == 20.43
    assert round(facts.tabulated_weights / 1e9, 2) == 6.79
    assert facts.text.linear_params + facts.text.other_params + facts.text.unused == 8_292_166_656
    assert (facts.width, facts.blocks) == (3072, 60)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("vae/diffusion_pytorch_model.safetensors", b"\xff" * 20),
        ("text_encoder/model.safetensors", b"version https://git-lfs.github.com/spec/v1"),
        ("vae/config.json", b"{"),
        ("transformer/config.json", b"[1]"),
    ],
)
def test_a_damaged_file_is_named_instead_of_the_published_sizes(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path / file))}: .*Copy or download the model again"):
        FAMILY.footprint(tmp_path)
